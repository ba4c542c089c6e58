"""Logits divided by the temperature that answers are drawn at, so that log-probabilities are of the
distribution that they are drawn from."""

import contextlib
from collections.abc import Iterator

import torch
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor


@contextlib.contextmanager
def divided_by(chunk: torch.nn.Module, temperature: float) -> Iterator[None]:
    """Have the logits that a chunk makes in the block divided: those of multi-token prediction as
    well, whose guesses are drawn at that temperature too.

    Args:
        chunk: of a model; one without a loss has none.
        temperature: more than 0.
    """
    if temperature == 1 or not get_attr_wrapped_model(chunk, "post_process"):
        yield
        return

    def divide(
        layer: torch.nn.Module, given: tuple[Tensor, ...], made: tuple[Tensor, None]
    ) -> tuple[Tensor, None]:
        return made[0] / temperature, made[1]

    hook = get_attr_wrapped_model(chunk, "output_layer").register_forward_hook(divide)
    try:
        yield
    finally:
        hook.remove()
