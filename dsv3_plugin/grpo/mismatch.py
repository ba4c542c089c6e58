"""How far an engine's log-probabilities are from the trainer's, of the same tokens and weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv3_plugin.grpo.ratios import LARGEST_LOG_RATIO


@dataclass(frozen=True)
class Mismatch:
    """Of the sampled tokens of a step.

    Attributes:
        max, mean: absolute difference of log-probabilities.
        kl: k3 estimate of KL(engine ‖ trainer), nats per token.
        beyond_clip: share of tokens whose ratio lies out of the clip.
    """

    max: float
    mean: float
    kl: float
    beyond_clip: float


def together(parts: Sequence[tuple[Mismatch, int]]) -> Mismatch:
    """That of several ranks' tokens.

    Args:
        parts: of each, with the number of its tokens.
    """
    tokens = max(sum(number for _, number in parts), 1)

    def mean(name: str) -> float:
        return sum(getattr(part, name) * number for part, number in parts) / tokens

    most = max((part.max for part, _ in parts), default=0.0)
    return Mismatch(most, mean("mean"), mean("kl"), mean("beyond_clip"))


@torch.no_grad()
def mismatch(trainer: Tensor, engine: Tensor, low: float, high: float) -> Mismatch:
    """Compare log-probabilities of the same tokens, both `[t]`.

    Args:
        trainer: by the model that is trained, before the step.
        engine: as sampled.
        low, high: of the clip.
    """
    if not trainer.numel():
        return Mismatch(0.0, 0.0, 0.0, 0.0)
    logs = (trainer - engine).double()
    near = logs.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    ratios = near.exp()
    beyond = (ratios < 1 - low) | (ratios > 1 + high)
    return Mismatch(
        max=logs.abs().max().item(),
        mean=logs.abs().mean().item(),
        kl=(near.expm1() - near).mean().item(),
        beyond_clip=beyond.double().mean().item(),
    )
