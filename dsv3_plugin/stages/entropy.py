"""The entropy of the model's distributions, which its loss does not tell."""

import contextlib
from collections.abc import Iterator

import torch
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor


@contextlib.contextmanager
def of_tokens(chunk: torch.nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """The entropy at each place, with its gradient, when a chunk makes logits in the block.

    Args:
        chunk: of a model, whose logits are whole.
        wanted: whether to look at all.

    Yields:
        A list for float32 `[b, s]` in nats; a chunk without a loss leaves it empty.
    """
    found: list[Tensor] = []
    if not wanted or not get_attr_wrapped_model(chunk, "post_process"):
        yield found
        return

    def look(layer: torch.nn.Module, given: tuple[Tensor, ...], made: tuple[Tensor, None]) -> None:
        # The model's own logits come last, behind those of multi-token prediction.
        found[:] = [entropy(made[0]).transpose(0, 1)]

    hook = get_attr_wrapped_model(chunk, "output_layer").register_forward_hook(look)
    try:
        yield found
    finally:
        hook.remove()


def entropy(logits: Tensor) -> Tensor:
    """Of logits `[..., vocabulary]`, nats `[...]`."""
    log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    return -(log_probs.exp() * log_probs).sum(-1)
