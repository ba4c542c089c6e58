"""The GPU kernels that upstream's flex dispatcher can run on: their modules, where to get them.

No torch here, so that a recipe is refused before any rank starts.
"""

import importlib.util
from dataclasses import dataclass

from dsv3_plugin.errors import UserError


@dataclass(frozen=True)
class Kernels:
    """A library: the module that is there when it is installed, and what to say when it is not."""

    module: str
    absent: str


KERNELS = {
    "deepep": Kernels(
        "deep_ep",
        "dispatch.kind: deepep needs the Python package deep_ep: build it from DeepSeek's DeepEP "
        "(with NVSHMEM), or use dispatch.kind: two_hop",
    ),
    "hybridep": Kernels(
        "hybrid_ep_cpp",
        "dispatch.kind: hybridep needs the Python package deep_ep built from the hybrid-ep branch "
        "of DeepSeek's DeepEP, or use dispatch.kind: two_hop",
    ),
}
"""By dispatch.kind."""


def refuse_missing_kernels(kind: str) -> None:
    """Raise UserError if a kind of dispatch runs on kernels that are not installed here."""
    wanted = KERNELS.get(kind)
    # Looked for, not imported: importing takes seconds and a GPU.
    if wanted is not None and importlib.util.find_spec(wanted.module) is None:
        raise UserError(wanted.absent)
