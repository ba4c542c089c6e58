"""Continuations against logits, and against transformers' generate for the shapes of the family."""

import pytest
import torch

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.generate import generate
from dsv3_plugin.inference.logits import main_logits
from dsv3_plugin.model.build import build_model
from tests import oracles
from tests.family import MODELS


@pytest.fixture(scope="module")
def model(world):
    built = build_model(oracles.model_config(mtp_num_layers=1))
    oracles.randomize(built, seed=6)
    return built


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
def test_equals_transformers(name):
    config = oracles.model_config(**{"max_position_embeddings": 256} | MODELS[name])
    theirs, ours = oracles.causal_lm(config), build_model(config)
    oracles.load_weights(ours, theirs)
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
