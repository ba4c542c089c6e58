"""The tokens that multi-token prediction's loss is weighed by, of packs and of shared sequences.

Where gradients are summed over tokens and divided by their number at last, upstream multiplies the
loss of a token further ahead by the counted tokens over those of them that still have a label
there. The former it counts on the rank, the latter are the sequence's (`next_tokens`): a rank with
padding would weigh its labels less than another, and one that counts nothing not at all, though
labels come to it from its neighbour. In packs that quotient depends on what a sample is packed
with; there the two are the same number, which is the 1 / T of the paper's equation 24.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from dsv3_plugin.distributed.packs import Packs


def process_mtp_loss(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's function of that name, which counts the sequence's tokens, or a pack's."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def with_tokens_of_sequence(*args: Any, **kwargs: Any) -> torch.Tensor:
        given = signature.bind(*args, **kwargs)
        config, mask = given.arguments["config"], given.arguments.get("loss_mask")
        if mask is None or not config.calculate_per_token_loss:
            return original(*args, **kwargs)
        tokens = _tokens(mask, given.arguments)
        if tokens is None:
            return original(*args, **kwargs)
        weighed = copy.copy(config)
        # Upstream divides by the labels, as where gradients are means; what it would multiply by,
        # the rank's own tokens, is the weight instead.
        weighed.calculate_per_token_loss = False
        weighed.mtp_loss_scaling_factor = config.mtp_loss_scaling_factor * tokens
        given.arguments["config"] = weighed
        return original(*given.args, **given.kwargs)

    return with_tokens_of_sequence


def _tokens(mask: torch.Tensor, given: dict[str, Any]) -> torch.Tensor | None:
    """Counted tokens, on average over the ranks that share them; None: upstream counts the same."""
    packs, group = given.get("packed_seq_params"), given.get("cp_group")
    if isinstance(packs, Packs):
        return packs.learned
    if group is None or group.size() == 1:
        return None
    total = mask.sum()
    dist.all_reduce(total, group=group)
    return total / group.size()
