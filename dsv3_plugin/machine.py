"""What `auto` in a recipe looks at: this machine's GPU and Transformer Engine, without torch."""

import importlib.util
import os
from pathlib import Path


def gpu_count() -> int:
    """How many devices NVIDIA's driver shows here, as far as CUDA_VISIBLE_DEVICES allows."""
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return devices
    return min(devices, len([device for device in visible.split(",") if device.strip()]))


def has_gpu() -> bool:
    """Whether there is a device to use here."""
    return gpu_count() > 0


def has_transformer_engine() -> bool:
    """Whether Transformer Engine is installed; it is looked for, not imported."""
    return importlib.util.find_spec("transformer_engine") is not None
