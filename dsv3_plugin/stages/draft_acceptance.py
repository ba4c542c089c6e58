"""How often the first draft of multi-token prediction is the model's own choice.

A model that decodes speculatively (arXiv 2412.19437, section 5.4.3) keeps a draft where it is the
token that the model itself finds likeliest, having seen what comes before. Upstream's
`mtp_acceptance_rate` asks another question, whether the draft is the token of the text. Both are
asked here with the text before, not with what a model has said so far.
"""

import contextlib
from collections.abc import Iterator

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import multi_token_prediction
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor

REPORTED = "draft acceptance"
"""Name of the number in a micro-batch's report."""


@contextlib.contextmanager
def choices_of(chunk: torch.nn.Module) -> Iterator[list[Tensor]]:
    """The likeliest token of each place, whenever a chunk makes logits in the block.

    A forward pass makes those of the multi-token prediction layers, in order, and the model's own
    last. None are seen of a chunk in training, without a loss or without such layers.

    Args:
        chunk: of a model.

    Yields:
        A list that fills with int64 `[s, b]`.
    """
    choices: list[Tensor] = []
    if chunk.training or not _drafts(chunk):
        yield choices
        return
    group = parallel_state.get_tensor_model_parallel_group()

    def look(layer: torch.nn.Module, given: tuple[Tensor, ...], made: tuple[Tensor, None]) -> None:
        logits = made[0].detach()
        if group.size() == 1:
            choices.append(logits.argmax(-1))
        else:
            argmax = multi_token_prediction._vocab_parallel_argmax
            choices.append(argmax(logits, group, group.size()))

    hook = get_attr_wrapped_model(chunk, "output_layer").register_forward_hook(look)
    try:
        yield choices
    finally:
        hook.remove()


def _drafts(chunk: torch.nn.Module) -> bool:
    """Whether the loss of multi-token prediction is computed in a chunk."""
    layers = get_attr_wrapped_model(chunk, "config").mtp_num_layers
    return bool(layers) and get_attr_wrapped_model(chunk, "post_process")


def accepted(
    choices: list[Tensor], loss_mask: Tensor, boundaries: PackedSeqParams | None
) -> Tensor:
    """How many first drafts are the model's choice, and of how many.

    The draft at a place is about the token two further, which the model itself chooses at the next
    place. It counts where that token is in the loss: no prompt, no padding, and none of another
    sample.

    Args:
        choices: of one forward pass, see `choices_of`.
        loss_mask: float `[b, s]`, 1 where the next token is in the loss.
        boundaries: of the samples of a pack; None: a row is one.

    Returns:
        float32 `[2]`, in percent the first, so that the quotient of sums is a percentage.
    """
    drafts, own = choices[0].transpose(0, 1), choices[-1].transpose(0, 1)
    group = parallel_state.get_context_parallel_group()
    own, counted = (
        multi_token_prediction.roll_tensor(each, cp_group=group, packed_seq_params=boundaries)[0]
        for each in (own, loss_mask)
    )
    counted = counted > 0
    return torch.stack([100.0 * ((drafts == own) & counted).sum(), counted.sum().float()])
