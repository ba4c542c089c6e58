"""How much better an answer is than the others to the same prompt."""

from typing import Literal

import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to the deviation of a group, as verl does (TRL adds 1e-4)."""

Scale = Literal["group", "none"]
"""group: by the deviation of the group; none: not (Dr. GRPO, arXiv 2503.20783)."""


def advantages_of(rewards: Tensor, scale: Scale = "group") -> Tensor:
    """(r - mean) / std of each group (arXiv 2402.03300, section 4.1.2).

    A group whose rewards are equal says nothing, so its advantages are 0, exactly: sums of equal
    numbers need not give their mean. So are those of a group of one.

    Args:
        rewards: `[prompts, answers]`.
        scale: what the differences are divided by; the deviation has n - 1 in its denominator.

    Returns:
        `[prompts, answers]`.
    """
    if rewards.shape[1] < 2:
        return torch.zeros_like(rewards)
    differences = rewards - rewards.mean(dim=1, keepdim=True)
    if scale == "group":
        differences = differences / (rewards.std(dim=1, keepdim=True) + EPSILON)
    return differences.masked_fill(~tells_apart(rewards)[:, None], 0)


def tells_apart(rewards: Tensor) -> Tensor:
    """Bool `[prompts]`, whether the answers of each group have different rewards.

    Args:
        rewards: `[prompts, answers]`. DAPO samples on until enough groups do (arXiv 2503.14476,
            equation 11).
    """
    return (rewards != rewards[:, :1]).any(dim=1)
