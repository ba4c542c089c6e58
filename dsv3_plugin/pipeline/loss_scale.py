"""The scale of gradients that upstream adds in the backward: of balance and multi-token prediction.

Upstream's `forward_step` sets it anew after every forward, in an attribute of a class; every
backward reads it there. Beside each other on two CUDA streams the one would read what the other has
not computed yet, or no longer holds. In a step it is always the same number, and the first forward
of a step is never in a pair: so the forward of a pair leaves it alone.
"""

import functools
from collections.abc import Callable

import torch

from dsv3_plugin.distributed import overlap


def set_loss_scale(original: Callable[[torch.Tensor], None]) -> Callable[[torch.Tensor], None]:
    """Wraps `MoEAuxLossAutoScaler.set_loss_scale` and `MTPLossAutoScaler.set_loss_scale`."""

    @functools.wraps(original)
    def outside_pairs(scale: torch.Tensor) -> None:
        if not overlap.in_a_pair():
            original(scale)

    return staticmethod(outside_pairs)
