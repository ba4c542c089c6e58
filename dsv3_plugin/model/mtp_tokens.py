"""The tokens that multi-token prediction's loss is weighed by, where ranks share a sequence.

Where gradients are summed over tokens and divided by their number at last, upstream multiplies the
loss of a token further ahead by the counted tokens over those of them that still have a label
there. The former it counts on the rank, the latter are the sequence's (`next_tokens`): a rank with
padding would weigh its labels less than another.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def process_mtp_loss(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's function of that name; with context parallelism it counts the sequence's."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def with_tokens_of_sequence(*args: Any, **kwargs: Any) -> torch.Tensor:
        given = signature.bind(*args, **kwargs)
        config, group = given.arguments["config"], given.arguments.get("cp_group")
        mask = given.arguments.get("loss_mask")
        if (
            group is None
            or group.size() == 1
            or mask is None
            or not config.calculate_per_token_loss
        ):
            return original(*args, **kwargs)
        mine = mask.sum()
        mean = mine.clone()
        dist.all_reduce(mean, group=group)
        mean = mean / group.size()
        weighed = copy.copy(config)
        # What upstream multiplies by `mine` is multiplied by the mean of the ranks.
        weighed.mtp_loss_scaling_factor = config.mtp_loss_scaling_factor * mean / mine.clamp(min=1)
        given.arguments["config"] = weighed
        return original(*given.args, **given.kwargs)

    return with_tokens_of_sequence
