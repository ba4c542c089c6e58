"""Truncated importance correction: for tokens that another computation of the model has sampled.

An engine rounds otherwise than the trainer, or is some steps behind; what it has sampled is then
weighed by how likely the trainer's model was to. Nothing here has a gradient.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dsv3_plugin.grpo.answers import Answers
from dsv3_plugin.grpo.ratios import LARGEST_LOG_RATIO

Level = Literal["token", "sequence", "mask"]
"""token: each token by its own ratio; sequence: by the product over its answer; mask: by its own,
and not at all where that is out of bounds (IcePop)."""


@dataclass(frozen=True)
class Correction:
    """How tokens are weighed.

    Attributes:
        level: see `Level`.
        high: the most that a ratio counts; with `mask`, beyond which a token does not.
        low: with `mask`, below which a token does not count.
    """

    level: Level
    high: float = 2.0
    low: float = 0.5


@torch.no_grad()
def correction_weights(
    old: Tensor, sampled: Tensor, answers: Answers, correction: Correction
) -> Tensor:
    """What each token weighs, `[t]`.

    Args:
        old: `[t]`, log-probabilities under the trainer's model as it was sampled from.
        sampled: `[t]`, as the engine said.
        answers: of the tokens.
        correction: how.
    """
    ratios = _ratios(old, sampled, answers, correction)
    if correction.level == "mask":
        return ratios.masked_fill(_out(ratios, correction), 0)
    bounded = ratios.clamp(max=correction.high)
    return answers.to_tokens(bounded) if correction.level == "sequence" else bounded


@torch.no_grad()
def truncated(old: Tensor, sampled: Tensor, answers: Answers, correction: Correction) -> Tensor:
    """Where a bound of the correction holds: bool `[t]`, or by sequences `[answers]`.

    Args:
        old, sampled, answers, correction: see `correction_weights`.
    """
    return _out(_ratios(old, sampled, answers, correction), correction)


def _ratios(old: Tensor, sampled: Tensor, answers: Answers, correction: Correction) -> Tensor:
    """`[t]`, or by sequences `[answers]`."""
    logs = old - sampled
    if correction.level == "sequence":
        logs = answers.sums(logs)
    return logs.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()


def _out(ratios: Tensor, correction: Correction) -> Tensor:
    beyond = ratios > correction.high
    return beyond | (ratios < correction.low) if correction.level == "mask" else beyond
