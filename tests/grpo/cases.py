"""Two prompts with four answers each, and log-probabilities of them, from numpy's seed 0."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsv3_plugin.grpo.answers import Answers

PROMPTS, ANSWERS, LONGEST = 2, 4, 6


@dataclass(frozen=True)
class Case:
    """Rectangles are `[answers, LONGEST]`, in FP64; what lies behind an answer does not count."""

    new: Tensor
    old: Tensor
    reference: Tensor
    sampled: Tensor
    lengths: Tensor
    rewards: Tensor

    @property
    def mask(self) -> Tensor:
        return (torch.arange(LONGEST) < self.lengths[:, None]).double()

    @property
    def answers(self) -> Answers:
        return Answers.of_lengths(self.lengths)

    def packed(self, rectangle: Tensor) -> Tensor:
        """Answer after answer, without what lies behind them, `[t]`."""
        return rectangle[self.mask.bool()]


def the_case(spread: float = 0.3) -> Case:
    draw = np.random.default_rng(0)
    shape = (PROMPTS * ANSWERS, LONGEST)

    def normal(scale: float) -> Tensor:
        return torch.tensor(scale * draw.standard_normal(shape))

    new, old, reference = (-2 + normal(spread) for _ in range(3))
    sampled = old + normal(0.2)
    lengths = torch.tensor(draw.integers(2, LONGEST + 1, len(new)))
    rewards = torch.tensor(draw.integers(0, 2, len(new)).astype(float))
    return Case(new, old, reference, sampled, lengths, rewards.view(PROMPTS, ANSWERS))
