"""The clipped objective of a token, to be minimised."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Clip:
    """How far a ratio may move an answer's probability.

    Attributes:
        low, high: below and above 1 (DAPO's clip-higher, arXiv 2503.14476, equation 10).
        dual: the most that a ratio counts where the advantage is negative (arXiv 1912.09729);
            None: no bound.
    """

    low: float
    high: float
    dual: float | None = None


@dataclass(frozen=True)
class Surrogate:
    """What each token contributes.

    Attributes:
        losses: `[t]`, with the gradient of the ratios.
        clipped: bool `[t]`, where a bound of the clip took the gradient.
        clipped_dual: bool `[t]`, where the dual one did.
    """

    losses: Tensor
    clipped: Tensor
    clipped_dual: Tensor


def surrogate(log_ratios: Tensor, advantages: Tensor, clip: Clip) -> Surrogate:
    """-min(r · A, clip(r) · A) (PPO, arXiv 1707.06347, equation 7), and its dual clip.

    Args:
        log_ratios: `[t]`, see `ratios.log_ratios`.
        advantages: `[t]`, each token's answer's.
        clip: the bounds.
    """
    ratios = log_ratios.exp()
    plain = -advantages * ratios
    bounded = -advantages * ratios.clamp(1 - clip.low, 1 + clip.high)
    losses = torch.maximum(plain, bounded)
    clipped = bounded > plain
    clipped_dual = torch.zeros_like(clipped)
    if clip.dual is not None:
        most = -advantages * clip.dual
        clipped_dual = (advantages < 0) & (losses > most)
        losses = torch.where(advantages < 0, torch.minimum(losses, most), losses)
    return Surrogate(losses, clipped, clipped_dual)
