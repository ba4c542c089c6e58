"""Makes a Hugging Face folder with DeepSeek-V3's full width and every kind of layer.

    python benchmarks/synthetic_checkpoint.py FOLDER [--gigabytes 11] [--form fp8]

Embedding, head, a dense layer, MoE layers and an MTP layer with its copies have V3's own widths;
the number of MoE layers and of experts is what fits the size. Values are random bytes of the form's
type (no NaN), repeated with shifts, so it is made at the speed of the disk.
"""

import argparse
import json
import math
import time
import zlib
from pathlib import Path

import torch

from dsv3_plugin.checkpoint.conversion.config_json import FP8_CONFIG
from dsv3_plugin.checkpoint.conversion.stream import as_bytes
from dsv3_plugin.checkpoint.formats.hf_writer import HFLayout
from dsv3_plugin.checkpoint.formats.shard_size import shard_bytes
from dsv3_plugin.checkpoint.names import SCALE, layout
from dsv3_plugin.recipe.hf_config import hf_config
from dsv3_plugin.recipe.load import load_model
from dsv3_plugin.recipe.model import ModelConfig

E4M3 = torch.float8_e4m3fn
_POOL = 64 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=11.5)
    parser.add_argument("--form", choices=["fp8", "bf16"], default="fp8")
    parser.add_argument("--shard-size", type=shard_bytes, default="5GB")
    arguments = parser.parse_args()
    began = time.monotonic()
    model = model_of_size(arguments.gigabytes * 1e9, arguments.form)
    size = make(arguments.folder, model, arguments.form, arguments.shard_size)
    print(
        f"{arguments.folder}: {size / 1e9:.2f} GB, {model.num_layers} layers + 1 MTP, "
        f"{model.num_moe_experts} experts, {time.monotonic() - began:.0f} s"
    )


def model_of_size(nbytes: float, form: str) -> ModelConfig:
    """The deepest V3 with 1 dense layer and the most experts that takes at most `nbytes`."""
    v3 = load_model("deepseek-v3")
    best = None
    for moe_layers in range(1, 59):
        for experts in range(16, 257, 16):
            model = v3.model_copy(update={
                "name": "synthetic-v3", "num_layers": 1 + moe_layers,
                "moe_layer_freq": [0] + [1] * moe_layers, "num_moe_experts": experts,
            })  # fmt: skip
            if _size(model, form) > nbytes:
                break
            best = model
    if best is None:
        raise SystemExit(f"{nbytes / 1e9:.1f} GB hold no layer of each kind: take more.")
    return best


def make(folder: Path, model: ModelConfig, form: str, shard_size: int) -> int:
    """Writes the folder; returns the bytes of its tensors."""
    folder.mkdir(parents=True)
    tensors = []
    for entry in layout(model):
        dtype = _dtype(entry.precision, form)
        tensors.append((entry.name, dtype, entry.shape))
        if dtype == E4M3:
            tensors.append((entry.name + SCALE, torch.float32, entry.scale().shape))
    placed = HFLayout(tensors, shard_size)
    pools = {dtype: _pool(dtype) for dtype in (E4M3, torch.bfloat16, torch.float32)}
    copies = {entry.name: entry.copy_of for entry in layout(model) if entry.copy_of}
    for file, size in placed.files.items():
        with (folder / file).open("wb") as handle:
            handle.write(placed.headers[file])
            handle.truncate(size)
    for target in placed.targets.values():
        pool = pools[target.dtype]
        # The shift depends on the name, and a copy's is its original's.
        original = copies.get(target.name, target.name)
        shift = zlib.crc32(original.encode()) % (len(pool) // 2) & ~63
        with (folder / target.pieces[0].file).open("r+b") as handle:
            handle.seek(target.pieces[0].position)
            left = target.nbytes
            while left:
                part = pool[shift : shift + left]
                handle.write(part)
                left, shift = left - len(part), 0
    placed.publish(folder)
    config = hf_config(model) | ({"quantization_config": FP8_CONFIG} if form == "fp8" else {})
    (folder / "config.json").write_text(json.dumps(config))
    return placed.total_size


def _size(model: ModelConfig, form: str) -> int:
    size = 0
    for entry in layout(model):
        dtype = _dtype(entry.precision, form)
        size += math.prod(entry.shape) * dtype.itemsize
        if dtype == E4M3:
            size += 4 * math.prod(entry.scale().shape)
    return size


def _dtype(precision: str, form: str) -> torch.dtype:
    if precision == "fp8" and form == "fp8":
        return E4M3
    return torch.float32 if precision == "fp32" else torch.bfloat16


def _pool(dtype: torch.dtype) -> memoryview:
    draw = torch.Generator().manual_seed(0)
    if dtype == E4M3:
        bits = torch.randint(0, 254, (_POOL,), generator=draw, dtype=torch.uint8)
        return as_bytes(bits + (bits >= 127))
    values = torch.randn(_POOL // dtype.itemsize, generator=draw) * 0.02
    return as_bytes((values if dtype == torch.bfloat16 else values.abs() * 1e-2 + 1e-5).to(dtype))


if __name__ == "__main__":
    main()
