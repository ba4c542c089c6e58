"""What a machine has, as far as recipes and those who start ranks have to know. Without torch."""

import importlib.util
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_DEVICES = Path("/dev")
_CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Machine:
    """A machine that ranks can run on.

    Attributes:
        gpus: devices to be used.
        transformer_engine: whether Transformer Engine is installed.
    """

    gpus: int
    transformer_engine: bool

    @classmethod
    def here(cls) -> Self:
        """This one.

        GPUs are those that NVIDIA's driver shows, as far as CUDA_VISIBLE_DEVICES allows.
        Transformer Engine is looked for, not imported.
        """
        return cls(
            gpus=_visible_gpus(),
            transformer_engine=importlib.util.find_spec("transformer_engine") is not None,
        )


def memory_bytes() -> int | None:
    """Of this machine, or what its control group may take of it; None: it does not say."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
    try:
        return min(whole, int(_CONTROL_GROUP.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such group, or no limit, "max"
        return whole


def _visible_gpus() -> int:
    devices = len(list(_DEVICES.glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return devices
    # As CUDA reads it: numbers or UUIDs, up to the first that names no device.
    named = itertools.takewhile(_names_a_device, (entry.strip() for entry in visible.split(",")))
    return min(devices, len([*named]))


def _names_a_device(entry: str) -> bool:
    return entry.isdecimal() or entry.startswith(("GPU-", "MIG-"))
