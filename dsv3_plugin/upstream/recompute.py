"""Recomputing norms and MLA up-projections where Transformer Engine is not installed.

`CheckpointWithoutOutput(fp8=False)`, as upstream's layers make it, asks "is fp8 not None" and then
for TE's FP8 state, which does not exist without TE: a NameError in the first forward. Where TE is,
upstream's answer stands: what is recomputed then has to look at TE's state.
"""

import functools
from collections.abc import Callable
from typing import Any

from megatron.core.tensor_parallel import random


def checkpoint_without_output_init(original: Callable[..., None]) -> Callable[..., None]:
    """Wraps `tensor_parallel.random.CheckpointWithoutOutput.__init__`: no FP8 is no FP8."""

    @functools.wraps(original)
    def init(self: Any, fp8: Any = False) -> None:
        original(self, fp8=fp8 if random.HAVE_TE else fp8 or None)

    return init
