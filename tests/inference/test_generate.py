"""Generation against logits, and sampling against its definition."""

import pytest
import torch

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.generate import generate, sample
from dsv3_plugin.inference.logits import main_logits
from dsv3_plugin.model.build import build_model
from tests import oracles


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


def test_equals_transformers():
    config = oracles.model_config()
    theirs, ours = oracles.causal_lm(config), build_model(config)
    oracles.load_weights(ours, theirs)
    expected = theirs.generate(torch.tensor([[3, 1, 4]]), max_new_tokens=12, do_sample=False)
    assert list(generate(ours, [3, 1, 4], max_new_tokens=12)) == expected[0, 3:].tolist()


def test_stop_token_ends_the_text(model):
    text = list(generate(model, [5, 17, 60], max_new_tokens=20))
    stop = text[7]
    stopped = list(generate(model, [5, 17, 60], max_new_tokens=20, stop=stop))
    assert stopped == text[: text.index(stop)]


def test_seed_decides(model):
    settings = {"max_new_tokens": 15, "temperature": 1.0}
    first = list(generate(model, [1, 2], seed=3, **settings))
    assert first == list(generate(model, [1, 2], seed=3, **settings))
    assert first != list(generate(model, [1, 2], seed=4, **settings))


def test_sampling_follows_temperature_and_nucleus():
    draw = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()

    def shares(temperature, top_p, count=4000):
        drawn = [sample(logits, temperature, top_p, draw) for _ in range(count)]
        return torch.tensor(drawn).bincount(minlength=4) / count

    torch.testing.assert_close(shares(1.0, 1.0), logits.exp(), rtol=0, atol=0.03)
    halved = logits.exp().sqrt() / logits.exp().sqrt().sum()
    torch.testing.assert_close(shares(2.0, 1.0), halved, rtol=0, atol=0.03)
    nucleus = torch.tensor([0.5, 0.3, 0.0, 0.0]) / 0.8
    torch.testing.assert_close(shares(1.0, 0.7), nucleus, rtol=0, atol=0.03)
    assert shares(1.0, 0.0, 20)[0] == 1.0  # never an empty nucleus


@pytest.mark.parametrize(("prompt", "count"), [([], 1), ([1] * 10, 55)])
def test_impossible_lengths_are_refused(model, prompt, count):
    with pytest.raises(UserError):
        next(generate(model, prompt, max_new_tokens=count))
