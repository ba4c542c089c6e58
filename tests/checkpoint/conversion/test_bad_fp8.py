"""FP8 weights, their scales, and what config.json says of them."""

import json
import shutil

import pytest
import torch

from tests.checkpoint.conversion.damage import O_PROJ, edit, refused, rename


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [None, "keep-fp8"])
def test_scale_that_is_no_number(fp8_source, tmp_path, value, dtype):
    name = O_PROJ + "_scale_inv"
    edit(fp8_source, lambda t: t[name].view(-1)[-1:].fill_(value) if name in t else None)
    refused(fp8_source, tmp_path / "t", name, "NaN or an infinity", "safetensors", dtype=dtype)


def test_scale_missing_or_alone(fp8_source, tmp_path):
    edit(fp8_source, lambda t: t.pop(O_PROJ + "_scale_inv", None))
    refused(fp8_source, tmp_path / "t", O_PROJ, "is FP8 and has no")
    edit(fp8_source, lambda t: rename(t, "model.norm.weight", "model.norm.weight_scale_inv"))
    refused(fp8_source, tmp_path / "t", "model.norm.weight_scale_inv")


def test_other_block_size(fp8_source, tmp_path):
    config = json.loads((fp8_source / "config.json").read_text())
    config["quantization_config"] = {"weight_block_size": [64, 64]}
    (fp8_source / "config.json").write_text(json.dumps(config))
    refused(fp8_source, tmp_path / "t", "weight_block_size", "[64, 64]")


@pytest.mark.parametrize(
    ("form", "said", "words"),
    [
        ("bf16", {"quant_method": "fp8"}, ["quantization_config", "no tensor beside it is FP8"]),
        ("bf16", {"quant_method": "gptq", "bits": 4}, ["quant_method 'gptq'", "only 'fp8'"]),
        (
            "fp8",
            None,
            ["is FP8, but", "has no quantization_config", "model.layers.", "safetensors"],
        ),
        ("fp8", [], ["quantization_config [] is no object"]),
        ("fp8", "fp8", ["quantization_config 'fp8' is no object"]),
        ("fp8", {"weight_block_size": None}, ["weight_block_size None", "only [128, 128]"]),
        ("fp8", {"weight_block_size": 128}, ["weight_block_size 128", "only [128, 128]"]),
        ("fp8", {"quant_method": "compressed-tensors"}, ["quant_method 'compressed-tensors'"]),
    ],
)
def test_quantisation_that_config_and_tensors_tell_otherwise(sources, tmp_path, form, said, words):
    folder = shutil.copytree(sources / form, tmp_path / "source")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": said}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, tmp_path / "t", folder / "config.json", *words)


@pytest.mark.parametrize("dtype", [None, "keep-fp8"])
@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_fp8_source_with_nan_bytes(fp8_source, tmp_path, code, dtype):
    def spoil(tensors):
        if O_PROJ in tensors:
            tensors[O_PROJ].view(torch.uint8)[-1, -1] = code

    edit(fp8_source, spoil)
    refused(fp8_source, tmp_path / "t", O_PROJ, "NaN or an infinity", "safetensors", dtype=dtype)
