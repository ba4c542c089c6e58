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
    logs = old - sampled
    if correction.level == "sequence":
        logs = answers.to_tokens(answers.sums(logs))
    ratios = logs.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    if correction.level == "mask":
        out = (ratios < correction.low) | (ratios > correction.high)
        return ratios.masked_fill(out, 0)
    return ratios.clamp(max=correction.high)
