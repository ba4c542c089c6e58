"""Ratios, divergences, corrections, advantages and penalties, each by hand."""

import math

import pytest
import torch

from dsv3_plugin.grpo.advantages import advantages_of, tells_apart
from dsv3_plugin.grpo.answers import Answers
from dsv3_plugin.grpo.correction import Correction, correction_weights, truncated
from dsv3_plugin.grpo.kl import divergence
from dsv3_plugin.grpo.mismatch import mismatch
from dsv3_plugin.grpo.overlong import overlong_penalty
from dsv3_plugin.grpo.ratios import log_ratios

TWO = Answers.of_lengths(torch.tensor([2, 1]))


def test_advantages_are_deviations_in_their_group() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)
    half = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert advantages_of(rewards).tolist() == [
        pytest.approx([half, -half, -half, half]),
        [0, 0, 0, 0],
    ]
    assert advantages_of(rewards, "none")[0].tolist() == [0.5, -0.5, -0.5, 0.5]
    assert tells_apart(rewards).tolist() == [True, False]
    assert advantages_of(torch.tensor([[3.0]])).tolist() == [[0.0]]


def test_what_could_not_be_judged_has_no_part_in_its_group() -> None:
    nan = float("nan")
    rewards = torch.tensor([[1.0, nan, 0.0, 1.0], [1.0, nan, nan, nan], [nan, 2.0, 2.0, nan]])
    found = advantages_of(rewards, counted=~rewards.isnan())
    alone = advantages_of(torch.tensor([[1.0, 0.0, 1.0]]))[0].tolist()
    assert found[0].tolist() == pytest.approx([alone[0], 0, alone[1], alone[2]])
    assert found[1:].tolist() == [[0] * 4] * 2


def test_a_sequences_ratio_is_the_mean_of_its_tokens_and_each_token_keeps_its_gradient() -> None:
    new = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    ratios = log_ratios(new, torch.tensor([-1.5, -2.1, -2.0]), TWO, "sequence")
    assert ratios.tolist() == pytest.approx([0.3, 0.3, -1.0])
    (ratios * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert new.grad.tolist() == [1, 10, 100]


@pytest.mark.parametrize("estimate", ["k1", "k3", "unbiased"])
@pytest.mark.parametrize("difference", [100.0, -100.0])
def test_a_divergence_is_finite_whatever_the_ratio(estimate: str, difference: float) -> None:
    new = torch.zeros(1, requires_grad=True)
    ratios = log_ratios(new, torch.zeros(1), Answers.of_lengths(torch.tensor([1])), "token")
    kl = divergence(new, new.detach() + difference, estimate, ratios)
    kl.sum().backward()
    assert kl.isfinite().all()
    assert new.grad.isfinite().all()


def test_unbiased_means_in_expectation_over_those_that_were_sampled() -> None:
    """Tokens of a vocabulary, each as often as the old model samples it."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 40, generator=draw, dtype=torch.float64) / 2
    new, old, reference = logits.log_softmax(1)
    one_each = Answers.of_lengths(torch.ones(40, dtype=torch.int64))
    ratios = log_ratios(new, old, one_each, "token")
    truth = (new.exp() * (new - reference)).sum()
    expected = (old.exp() * divergence(new, reference, "unbiased", ratios)).sum()
    assert expected.item() == pytest.approx(truth.item(), abs=1e-12)
    biased = (old.exp() * divergence(new, reference, "k3")).sum()
    assert abs(biased.item() - truth.item()) > 0.01


@pytest.mark.parametrize(
    ("correction", "expected", "beyond"),
    [
        (Correction("token", high=1.2), [1.2, 0.5, 1.0], [True, False, False]),
        (Correction("sequence", high=2.0), [0.75, 0.75, 1.0], [False, False]),
        (Correction("sequence", high=0.8), [0.75, 0.75, 0.8], [False, True]),
        (Correction("mask", high=1.4, low=0.6), [0, 0, 1.0], [True, True, False]),
    ],
)
def test_tokens_are_corrected(
    correction: Correction, expected: list[float], beyond: list[bool]
) -> None:
    sampled = torch.zeros(3)
    old = torch.tensor([math.log(1.5), math.log(0.5), 0.0], requires_grad=True)
    weights = correction_weights(old, sampled, TWO, correction)
    assert weights.tolist() == pytest.approx(expected)
    assert not weights.requires_grad
    assert truncated(old, sampled, TWO, correction).tolist() == beyond


def test_an_overlong_answer_is_punished_by_degrees() -> None:
    assert [overlong_penalty(n, longest=10, margin=4) for n in (6, 7, 10, 12)] == [
        0, -0.25, -1, -1,
    ]  # fmt: skip
    assert overlong_penalty(10, longest=10, margin=0) == 0


def test_a_mismatch_is_told_in_numbers() -> None:
    found = mismatch(torch.tensor([0.0, 0.5]), torch.tensor([0.0, 0.0]), 0.2, 0.28)
    assert (found.max, found.mean, found.beyond_clip) == (0.5, 0.25, 0.5)
    assert found.kl == pytest.approx((math.exp(0.5) - 1.5) / 2)
    assert mismatch(torch.empty(0), torch.empty(0), 0.2, 0.2).max == 0
