"""The `config.json` of an export: the source's own where there was one, and what changed since.

An import keeps the source's file beside the weights, whole. An export starts from it and overrides
only what the model and the chosen types say, so that token ids, `scale_fmt` and whatever else a
serving engine reads there come back as they were. A checkpoint without it, as training writes
them, gets a `config.json` made from its model.
"""

from pathlib import Path
from typing import Any

from dsv3_plugin.checkpoint.formats.hf_headers import read_config
from dsv3_plugin.files.links import inside
from dsv3_plugin.recipe.hf_config import brought_up_to_date, hf_config
from dsv3_plugin.recipe.model import ModelConfig

HF_CONFIG = "hf_config.json"
"""The source's `config.json` in a checkpoint folder."""

FP8_CONFIG = {
    "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
    "weight_block_size": [128, 128],
}  # fmt: skip
"""`quantization_config` of DeepSeek's FP8 checkpoints."""


def kept_config(checkpoint: Path) -> dict[str, Any] | None:
    """The `config.json` that the checkpoint was imported with, None if it was not."""
    there = inside(checkpoint, HF_CONFIG).is_file()
    return read_config(checkpoint, HF_CONFIG) if there else None


def exported_config(
    kept: dict[str, Any], model: ModelConfig, torch_dtype: str, fp8: bool
) -> dict[str, Any]:
    """The source's `config.json` as it is for `model` stored in these types.

    Args:
        kept: the source's.
        torch_dtype: of the weights that are not FP8.
        fp8: whether the linear weights are.
    """
    config = brought_up_to_date(kept, model)
    # transformers 5 writes the second spelling.
    for key in {"torch_dtype", "dtype"} & config.keys():
        config[key] = torch_dtype
    said = config.pop("quantization_config", None)
    return config | ({"quantization_config": said or FP8_CONFIG} if fp8 else {})


def new_config(
    model: ModelConfig, torch_dtype: str, fp8: bool, token_ids: dict[str, int]
) -> dict[str, Any]:
    """The `config.json` of a model that was not imported.

    Args:
        torch_dtype, fp8: as for `exported_config`.
        token_ids: `bos_token_id` and the like, as far as they are known.
    """
    config = hf_config(model, torch_dtype=torch_dtype, **token_ids)
    return config | ({"quantization_config": FP8_CONFIG} if fp8 else {})


def wants_power_of_two(kept: dict[str, Any] | None) -> bool:
    """Whether the source's scales are powers of two, so that new ones have to be (V3.1)."""
    said = (kept or {}).get("quantization_config") or {}
    return said.get("scale_fmt") == "ue8m0"
