"""Settings to ask the memory of: one rank that divides nothing, but for what is said."""

from typing import Any

from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.recipe.model import ModelConfig


def setting_of(model: ModelConfig, **differences: Any) -> Setting:
    """A model on one rank in FP32, with these differences."""
    whole: dict[str, Any] = {
        "seq_length": 4096,
        "micro_batch": 1,
        "tensor": 1,
        "pipeline": 1,
        "context": 1,
        "expert": 1,
        "data": 1,
        "zero1": False,
        "backend": "local",
        "dtype": "fp32",
        "fp8": None,
        "moments": "fp32",
        "recompute": frozenset(),
        "dispatcher": "alltoall",
        "wire": "bf16",
        "ranks_per_node": 8,
        "nvlink_domain": 8,
        "hide_shared_expert": False,
        "executor": "ours",
    }
    return Setting(model=model, **whole | differences)
