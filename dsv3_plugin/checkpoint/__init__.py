"""Checkpoints: Hugging Face ↔ Megatron, streamed and exact; what is whole; what is inside.

`names.py` is the one table that every direction reads. `import_hf` and `export_hf` convert folders,
`iter_hf_tensors` hands a live model's weights over without a disk.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv3_plugin.checkpoint.conversion.convert import export_hf, import_hf
    from dsv3_plugin.checkpoint.live_model import iter_hf_tensors

__all__ = ["export_hf", "import_hf", "iter_hf_tensors"]


def __getattr__(name: str) -> Any:
    # On demand: `dsv3 inspect` reads headers and metadata, and does not wait for torch.
    if name not in __all__:
        raise AttributeError(name)
    module = "live_model" if name == "iter_hf_tensors" else "conversion.convert"
    return getattr(importlib.import_module(f"dsv3_plugin.checkpoint.{module}"), name)
