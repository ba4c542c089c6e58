"""How much better an answer is than the others to the same prompt."""

from typing import Literal

import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to the deviation of a group, as verl does (TRL adds 1e-4)."""

Scale = Literal["group", "none"]
"""group: by the deviation of the group; none: not (Dr. GRPO, arXiv 2503.20783)."""


def advantages_of(rewards: Tensor, scale: Scale = "group", counted: Tensor | None = None) -> Tensor:
    """(r - mean) / std of each group (arXiv 2402.03300, section 4.1.2).

    A group whose rewards are equal says nothing, so its advantages are 0, exactly: sums of equal
    numbers need not give their mean. So are those of a group of one.

    Args:
        rewards: `[prompts, answers]`; what is not counted may be no number.
        scale: what the differences are divided by; the deviation has n - 1 in its denominator.
        counted: bool `[prompts, answers]`, which answers could be judged; None: all. The others
            have no part in their group, and no advantage.

    Returns:
        `[prompts, answers]`.
    """
    if counted is None:
        counted = torch.ones_like(rewards, dtype=torch.bool)
    rewards = rewards.masked_fill(~counted, 0)
    number = counted.sum(dim=1, keepdim=True)
    mean = rewards.sum(dim=1, keepdim=True) / number.clamp(min=1)
    differences = (rewards - mean).masked_fill(~counted, 0)
    if scale == "group":
        variance = differences.square().sum(dim=1, keepdim=True) / (number - 1).clamp(min=1)
        differences = differences / (variance.sqrt() + EPSILON)
    return differences.masked_fill(~tells_apart(rewards, counted)[:, None], 0)


def tells_apart(rewards: Tensor, counted: Tensor | None = None) -> Tensor:
    """Bool `[prompts]`, whether the answers of each group have different rewards.

    Args:
        rewards: `[prompts, answers]`. DAPO samples on until enough groups do (arXiv 2503.14476,
            equation 11).
        counted: see `advantages_of`.
    """
    if counted is None:
        counted = torch.ones_like(rewards, dtype=torch.bool)
    most = rewards.masked_fill(~counted, float("-inf")).amax(dim=1)
    least = rewards.masked_fill(~counted, float("inf")).amin(dim=1)
    return most > least
