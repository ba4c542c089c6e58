"""Continuations against logits, and against transformers' generate for the shapes of the family."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from dsv3_plugin.checkpoint.conversion.convert import export_hf, import_hf
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.checkpoint.names import layout
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.generate import generate
from dsv3_plugin.inference.logits import main_logits
from dsv3_plugin.model.build import build_model
from dsv3_plugin.recipe.hf_config import hf_config
from tests import oracles
from tests.family import MODELS


@pytest.fixture(scope="module")
def model(world):
    built = build_model(oracles.model_config(mtp_num_layers=1))
    oracles.randomize(built, seed=6)
    return built


def random_weights(config, folder):
    """A Hugging Face folder that neither the exporter nor transformers wrote."""
    draw = torch.Generator().manual_seed(6)
    tensors = {}
    for entry in layout(config):
        noise = torch.randn(entry.shape, generator=draw)
        is_norm, fan_in = "norm" in entry.name, max(1.0, entry.shape[-1] ** 0.5)
        tensors[entry.name] = 1 + 0.3 * noise if is_norm else noise / fan_in
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(hf_config(config, torch_dtype="float32")))


def test_cached_greedy_text_equals_recomputing_everything(model):
    text = [5, 17, 60]
    for _ in range(20):
        text.append(int(main_logits(model, torch.tensor([text]))[0, -1].argmax()))
    assert list(generate(model, text[:3], max_new_tokens=20)) == text[3:]


@pytest.mark.parametrize(
    "name",
    [
        "V3, 6 of 3 of 8", "V3 with YaRN", "V3 with plain YaRN", "V3 without a dense layer",
        "V2 with YaRN", "V2-Lite", "V2-Lite without YaRN", "Moonlight", "Kimi K2",
    ],
)  # fmt: skip
def test_equals_transformers(name, tmp_path):
    """transformers reads what the exporter wrote, and the engine's is what was exported."""
    config = oracles.model_config(**{"max_position_embeddings": 256} | MODELS[name])
    random_weights(config, tmp_path / "random")
    import_hf(tmp_path / "random", tmp_path / "checkpoint", workers=1)
    export_hf(tmp_path / "checkpoint", tmp_path / "exported", workers=1)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    ours, _ = load_for_inference(tmp_path / "checkpoint")
    expected = theirs.generate(
        torch.tensor([[3, 1, 4]]), max_new_tokens=200, do_sample=False, eos_token_id=None
    )
    assert list(generate(ours, [3, 1, 4], max_new_tokens=200)) == expected[0, 3:].tolist()


def test_stop_token_ends_the_text(model):
    text = list(generate(model, [5, 17, 60], max_new_tokens=20))
    stop = text[7]
    stopped = list(generate(model, [5, 17, 60], max_new_tokens=20, stop=[stop]))
    assert stopped == text[: text.index(stop)]


def test_seed_decides(model):
    settings = {"max_new_tokens": 15, "temperature": 1.0}
    first = list(generate(model, [1, 2], seed=3, **settings))
    assert first == list(generate(model, [1, 2], seed=3, **settings))
    assert first != list(generate(model, [1, 2], seed=4, **settings))


@pytest.mark.parametrize(("prompt", "count"), [([], 1), ([1] * 10, 55)])
def test_impossible_lengths_are_refused(model, prompt, count):
    with pytest.raises(UserError):
        next(generate(model, prompt, max_new_tokens=count))
