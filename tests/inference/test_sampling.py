"""Sampling against its definitions, and against transformers' processors of logits."""

import math

import pytest
import torch
from transformers.generation import logits_process as theirs

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.requests import SamplingParameters
from dsv3_plugin.inference.sampling import gumbel_noise, shaped, top_log_probs

LOGITS = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 2
SEEN = [3, 3, 7, 20]


@pytest.mark.parametrize(
    ("ours", "processor"),
    [
        ({"temperature": 0.7}, theirs.TemperatureLogitsWarper(0.7)),
        ({"top_k": 5}, theirs.TopKLogitsWarper(5)),
        ({"top_p": 0.8}, theirs.TopPLogitsWarper(0.8)),
        ({"min_p": 0.1}, theirs.MinPLogitsWarper(0.1)),
        ({"repetition_penalty": 1.3}, theirs.RepetitionPenaltyLogitsProcessor(1.3)),
        ({"logit_bias": {4: -3.0}}, theirs.SequenceBiasLogitsProcessor([[[4], -3.0]])),
    ],
)  # fmt: skip
def test_equals_transformers(ours, processor):
    got = shaped(LOGITS, SamplingParameters(**ours), SEEN)
    expected = processor(torch.tensor([SEEN]), LOGITS[None].clone())[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_order_of_what_is_done():
    sampling = SamplingParameters(
        temperature=0.5,
        top_k=10,
        top_p=0.9,
        min_p=0.05,
        repetition_penalty=1.2,
        logit_bias={3: 1.0},
    )
    expected = LOGITS[None].clone()
    for processor in (
        theirs.RepetitionPenaltyLogitsProcessor(1.2),
        theirs.SequenceBiasLogitsProcessor([[[3], 1.0]]),
        theirs.TemperatureLogitsWarper(0.5),
        theirs.TopKLogitsWarper(10),
        theirs.TopPLogitsWarper(0.9),
        theirs.MinPLogitsWarper(0.05),
    ):
        expected = processor(torch.tensor([SEEN]), expected)
    torch.testing.assert_close(shaped(LOGITS, sampling, SEEN), expected[0], rtol=0, atol=1e-6)


def test_the_likeliest_is_always_kept():
    for nothing in ({"top_p": 0.0}, {"min_p": 1.0}, {"top_k": 1}):
        kept = shaped(LOGITS, SamplingParameters(**nothing), []).isfinite()
        assert kept.nonzero().flatten().tolist() == [int(LOGITS.argmax())]


def test_tokens_that_are_as_likely_as_the_last_of_the_top_stay():
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0, 2.0])
    got = shaped(logits, SamplingParameters(top_k=2), [])
    expected = theirs.TopKLogitsWarper(2)(torch.tensor([[0]]), logits[None].clone())[0]
    assert torch.equal(got, expected)
    assert got.isfinite().tolist() == [False, True, True, True, False, True]


@pytest.mark.parametrize("temperature", [1e-10, 1e-38, 1e-45, 1e-300])
def test_a_tiny_temperature_takes_the_likeliest(temperature):
    probabilities = shaped(LOGITS, SamplingParameters(temperature=temperature), []).softmax(-1)
    assert probabilities[LOGITS.argmax()] == 1.0
    assert probabilities.sum() == 1.0


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    count = 4000
    noise = gumbel_noise([(1, 0, 0, position) for position in range(count)], 4)
    shares = (logits + noise).argmax(-1).bincount(minlength=4) / count
    expected = logits.exp() * count
    chi_square = ((shares * count - expected) ** 2 / expected).sum()
    assert chi_square < 16.27  # three degrees of freedom: one of a thousand seeds is beyond


def test_noise_is_of_seed_prompt_answer_and_position_alone():
    first, second = gumbel_noise([(5, 0, 1, 2), (5, 0, 1, 3)], 100)
    assert torch.equal(first, gumbel_noise([(5, 0, 1, 2)], 100)[0])
    assert torch.equal(second, gumbel_noise([(5, 0, 1, 3)], 100)[0])
    for other in ((6, 0, 1, 2), (5, 1, 1, 2), (5, 0, 2, 1), (5, 0, 1, 3)):
        assert not torch.equal(first, gumbel_noise([other], 100)[0])


def test_top_log_probs_come_with_their_tokens():
    log_probs = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]]).log()
    first, second = top_log_probs(log_probs, 2)
    assert [token for token, _ in first] == [1, 2]
    assert [token for token, _ in second] == [0, 2]
    assert first[0][1] == pytest.approx(float(log_probs[0, 1]))
    assert top_log_probs(log_probs, 0) == [(), ()]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0), ("temperature", -1.0), ("temperature", float("nan")), ("top_k", 0),
        ("top_p", 1.5), ("min_p", -0.1), ("repetition_penalty", 0.0), ("n", 0), ("seed", -1),
        ("stop", ("",)), ("logit_bias", {1: float("nan")}), ("top_log_probs", -1),
        ("logit_bias", {1: float("inf")}), ("logit_bias", {1: 1e39}),
        ("logit_bias", {1: -math.inf}), ("repetition_penalty", 1e-45),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(name, value):
    with pytest.raises(UserError, match=f"{name} is .* and has to be"):
        SamplingParameters(**{name: value})
