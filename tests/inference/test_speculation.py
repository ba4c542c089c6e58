"""Guessing ahead changes no answer: greedy, sampled, at every batch size; and what it guesses with
is what multi-token prediction computes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from prometheus_client import generate_latest

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.logits import main_logits, mtp_logits
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.inference.server.metrics import registry_of
from dsv3_plugin.inference.speculation import Predictor
from dsv3_plugin.model.build import build_model
from tests import oracles

BUDGET = 2**24


def build(predictors):
    model = build_model(
        oracles.model_config(
            num_layers=2, moe_layer_freq="[0]*1+[1]*1", max_position_embeddings=256,
            mtp_num_layers=predictors,
        )
    )  # fmt: skip
    oracles.randomize(model, seed=6)
    with torch.no_grad():  # likelier tokens, so that guesses come true sometimes
        model.output_layer.weight.mul_(0.2)
    return model


@pytest.fixture(scope="module")
def models(world):
    """By their layers of multi-token prediction."""
    return {predictors: build(predictors) for predictors in (1, 2)}


def requests(count, temperature):
    draw = torch.Generator().manual_seed(count)
    return [
        Request(
            tuple(torch.randint(96, (3 + 37 * number % 90,), generator=draw).tolist()),
            SamplingParameters(max_tokens=30 + number, temperature=temperature, seed=number),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("predictors", "drafts"), [(1, 1), (1, 3), (2, 2), (2, 3)])
@pytest.mark.parametrize("count", [1, 5])
def test_answers_are_those_without_it(models, predictors, drafts, temperature, count):
    model = models[predictors]
    wanted = requests(count, temperature)
    plain = Engine(model, EngineSettings(BUDGET)).run(wanted)
    guessing = Engine(model, EngineSettings(BUDGET, drafts=drafts))
    for ahead, answer in zip(guessing.run(wanted), plain, strict=True):
        assert ahead.tokens == answer.tokens
        torch.testing.assert_close(
            torch.tensor(ahead.log_probs), torch.tensor(answer.log_probs), rtol=0, atol=1e-5
        )
    assert guessing.counters.guessed[0] > 0
    assert guessing.scheduler.held == 0


SHAPED = {
    "a nucleus and a penalty": {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.3},
    "all at once": {
        "temperature": 1.5, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2,
        "logit_bias": {7: 2.0, 9: -100.0},
    },
    "greedy with a penalty": {"temperature": 0.0, "repetition_penalty": 1.5},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPED)
def test_shaped_distributions_are_drawn_from_as_without_it(models, shape):
    """The noise is that of a token's place, so equal tokens are equal distributions; a penalty is
    for what stands before a guess, other guesses included."""
    model = models[1]
    wanted = [
        replace(request, sampling=replace(request.sampling, **SHAPED[shape]))
        for request in requests(4, 1.0)
    ]
    guessing = Engine(model, EngineSettings(BUDGET, drafts=3))
    plain = Engine(model, EngineSettings(BUDGET)).run(wanted)
    for ahead, answer in zip(guessing.run(wanted), plain, strict=True):
        assert ahead.tokens == answer.tokens
        assert ahead.sampling_log_probs == pytest.approx(answer.sampling_log_probs, abs=1e-4)
    assert sum(guessing.counters.accepted) > 0


def test_acceptance_is_counted_by_place(models, monkeypatch):
    """Guesses of which none, one, two and three are right, of three, step after step."""
    model = models[1]
    request = replace(
        requests(1, 0.0)[0], sampling=SamplingParameters(max_tokens=11, temperature=0.0)
    )
    (plain,) = Engine(model, EngineSettings(BUDGET)).run([request])
    right = iter((0, 1, 2, 3))

    def guess(_predictor, trails, *_others):
        if not trails:
            return  # behind the last step
        (trail,) = trails
        begin = len(trail.sequence.tokens) - len(request.prompt)
        guesses = plain.tokens[begin : begin + trail.wanted]
        count = next(right)
        trail.guesses += [
            token if place < count else (token + 1) % 96 for place, token in enumerate(guesses)
        ]

    monkeypatch.setattr(Predictor, "guess", guess)
    engine = Engine(model, EngineSettings(BUDGET, drafts=3))
    (answer,) = engine.run([request])
    assert answer.tokens == plain.tokens
    assert engine.counters.steps == 1 + 4
    assert engine.counters.guessed == [4, 3, 2]
    assert engine.counters.accepted == [3, 2, 1]
    state = SimpleNamespace(counters=engine.counters, running=0, waiting=0, pages=0, held=0,
                            known=0, version=0)  # fmt: skip
    page = generate_latest(registry_of(SimpleNamespace(state=state))).decode()
    for name, values in (("guessed", (4, 3, 2)), ("accepted", (3, 2, 1))):
        for place, value in enumerate(values, start=1):
            assert f'dsv3_{name}_tokens_total{{place="{place}"}} {value}.0\n' in page


def test_with_too_few_pages_too(models):
    model = models[1]
    wanted = requests(6, 1.0)
    plain = Engine(model, EngineSettings(BUDGET)).run(wanted)
    pages = 5 * CacheShape.of(model.config, predictors=1).page_bytes
    scarce = Engine(model, EngineSettings(pages, drafts=2, tokens_in_step=50))
    assert [a.tokens for a in scarce.run(wanted)] == [a.tokens for a in plain]
    assert scarce.counters.put_back > 0


@pytest.mark.parametrize("predictors", [1, 2])
def test_guesses_are_those_of_multi_token_prediction(models, predictors):
    """Each layer's first guess, against logits of the whole text."""
    model = models[predictors]
    (request,) = requests(1, 0.0)
    engine = Engine(model, EngineSettings(BUDGET, drafts=predictors, tokens_in_step=2))
    engine.add(request)
    checked = 0
    while engine.busy:
        engine.step()
        for answer in engine._answers.values():
            text = answer.sequence.tokens
            for depth, guess in enumerate(answer.guesses, start=1):
                ahead = [*text, *answer.guesses]
                # Layer `depth` at the last computed position has seen the guesses before.
                expected = mtp_logits(model, torch.tensor([ahead]))[0, len(text) - 2, depth - 1]
                assert guess == int(expected.argmax())
                checked += 1
    assert checked > 20


def test_a_model_that_guesses_right_is_asked_less_often(world):
    """Where layer and model say the same of every text, all guesses come true."""
    model = build(1)
    with torch.no_grad():
        model.output_layer.weight.zero_()
    engine = Engine(model, EngineSettings(BUDGET, drafts=3))
    (answer,) = engine.run([Request((1, 2), SamplingParameters(max_tokens=40, temperature=0.0))])
    assert answer.tokens == [0] * 40  # all logits alike: the first
    assert engine.counters.accepted == engine.counters.guessed
    assert engine.counters.steps == 1 + 10  # the prompt, then four tokens a step


def test_sampled_tokens_follow_the_models_distribution(world):
    config = oracles.model_config(
        num_layers=1, moe_layer_freq="[0]*1", vocab_size=8, mtp_num_layers=1,
        num_moe_experts=None, moe_router_topk=None, moe_router_num_groups=None,
        moe_router_group_topk=None, moe_ffn_hidden_size=None,
        moe_shared_expert_intermediate_size=None, moe_router_enable_expert_bias=False,
    )  # fmt: skip
    model = build_model(config)
    oracles.randomize(model, seed=6)
    with torch.no_grad():
        model.output_layer.weight.mul_(0.5)
    engine = Engine(model, EngineSettings(BUDGET, drafts=2, most_running=1000))
    count = 1000
    answers = engine.run([Request((1, 2, 3), SamplingParameters(max_tokens=3, n=count, seed=4))])
    assert engine.counters.accepted[0] > 50
    # The third token, which a guess may have brought: over all texts of two before it.
    texts = torch.cartesian_prod(torch.arange(8), torch.arange(8))
    before = torch.tensor([1, 2, 3]).expand(64, 3)
    log_probs = main_logits(model, torch.cat([before, texts], dim=1)).log_softmax(-1)
    of_text = log_probs[:, 2].gather(1, texts[:, :1]) + log_probs[:, 3].gather(1, texts[:, 1:])
    expected = (of_text + log_probs[:, 4]).exp().sum(0) * count
    drawn = torch.tensor([answer.tokens[2] for answer in answers]).bincount(minlength=8)
    chi_square = ((drawn - expected) ** 2 / expected).sum()
    assert chi_square < 24.3  # seven degrees of freedom: one of a thousand seeds is beyond


def test_a_model_without_predictors_is_refused(world):
    model = build_model(oracles.model_config())
    with pytest.raises(UserError, match="no layers of multi-token prediction"):
        Engine(model, EngineSettings(BUDGET, drafts=1))
