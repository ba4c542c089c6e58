"""Small models and Hugging Face folders full of random numbers, for the tests of this room."""

import json
import mmap
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dsv3_plugin.checkpoint.conversion.config_json import FP8_CONFIG
from dsv3_plugin.checkpoint.formats.dist_metadata import read_contents
from dsv3_plugin.checkpoint.formats.torch_zip import payload
from dsv3_plugin.checkpoint.names import layout
from dsv3_plugin.recipe.hf_config import hf_config
from dsv3_plugin.recipe.model import ModelConfig
from tests import oracles

E4M3 = torch.float8_e4m3fn


def small_model(**changes: Any) -> ModelConfig:
    """V3's structure with an MTP layer, and edges that do not fill a 128-block."""
    ragged = {
        "name": "small", "hidden_size": 136, "ffn_hidden_size": 200, "vocab_size": 96,
        "q_lora_rank": 130, "num_moe_experts": 4, "moe_router_topk": 2, "moe_router_num_groups": 2,
        "moe_router_group_topk": 1, "moe_ffn_hidden_size": 72, "mtp_num_layers": 1,
        "moe_shared_expert_intermediate_size": 72,
    }  # fmt: skip
    return oracles.model_config(**(ragged | changes))


def random_tensors(model: ModelConfig, form: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors by name. `form` is bf16, fp32 or fp8 (weights with scales)."""
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for entry in layout(model):
        if entry.copy_of:
            tensors[entry.name] = tensors[entry.copy_of].clone()
        elif form == "fp8" and entry.precision == "fp8":
            # Every byte but the two NaNs; DeepSeek's scales are of this size.
            bits = torch.randint(0, 254, entry.shape, generator=draw)
            bits = (bits + (bits >= 127)).to(torch.uint8)
            tensors[entry.name] = bits.view(E4M3)
            scale = entry.scale()
            tensors[scale.name] = torch.rand(scale.shape, generator=draw) * 1e-3 + 1e-5
        else:
            dtype = torch.float32 if "fp32" in (form, entry.precision) else torch.bfloat16
            tensors[entry.name] = torch.randn(entry.shape, generator=draw).to(dtype)
    return tensors


def write_folder(
    folder: Path, model: ModelConfig, tensors: dict[str, torch.Tensor], shards: int = 2
) -> Path:
    """Writes a Hugging Face folder with the safetensors library."""
    folder.mkdir(parents=True, exist_ok=True)
    config = hf_config(model)
    if any(tensor.dtype == E4M3 for tensor in tensors.values()):
        config["quantization_config"] = FP8_CONFIG
    (folder / "config.json").write_text(json.dumps(config))
    names = list(tensors)
    index = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]
        save_file({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in a Hugging Face folder, read with the safetensors library."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def assert_same_bytes(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Same names, shapes, types and bytes."""
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert tensor.shape == b[name].shape, name
        assert torch.equal(tensor.view(torch.uint8), b[name].view(torch.uint8)), name


def overwrite(checkpoint: Path, key: str, data: bytes) -> None:
    """Puts other bytes at the beginning of a tensor of an imported checkpoint."""
    release = checkpoint / "release"
    _, _, place = read_contents(release).tensors[key].chunks[0]
    with (release / place.file).open("r+b") as handle:
        content = mmap.mmap(handle.fileno(), 0)
        position = payload(content, place.position, place.length).position
        content[position : position + len(data)] = data
        content.close()
