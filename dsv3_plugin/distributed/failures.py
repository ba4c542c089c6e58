"""A rank of the pipeline that is gone: which one, and in the middle of what it was missed.

A wait that fails because a rank died says "connection closed", and one that is stuck "timed out".
With one other rank in question it is that one. Among several it need not be the one waited for,
who may itself have been waiting: then the roll is called (`distributed.roll_call`).
"""

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core import parallel_state

from dsv3_plugin.distributed.roll_call import find_missing
from dsv3_plugin.errors import UserError

_SIGNS = (
    "connection closed",
    "connection reset",
    "broken pipe",
    "timed out",
    "timeout",
    "remote process exited",
    "nccl communicator was aborted",
)


class LostRank(UserError):
    """Another rank died or gave no sign in time. The stage that trains knows which step it was."""


def is_loss(error: RuntimeError) -> bool:
    """Whether a collective failed for want of another rank, by what gloo and NCCL say then."""
    text = str(error).lower()
    return any(sign in text for sign in _SIGNS)


def lost_rank(during: str, suspects: Sequence[int]) -> LostRank:
    """The sentence for a wait that failed.

    Args:
        during: what this rank was doing.
        suspects: global ranks of those it waited for, directly or through others.
    """
    me = torch.distributed.get_rank()
    others = [rank for rank in suspects if rank != me]
    missing = others if len(others) == 1 else find_missing(others)
    ranks = ", ".join(map(str, missing))
    who = f"rank {ranks}" if len(missing) == 1 else f"one of ranks {ranks}"
    return LostRank(
        f"rank {me} lost {who} during {during}: it died or gave no sign in time; see the end of "
        f"that rank's log"
    )


@contextlib.contextmanager
def naming_lost(during: str, suspects: Sequence[int]) -> Iterator[None]:
    """Turn the failure of what is inside into `LostRank`, where it is for want of a rank."""
    try:
        yield
    except RuntimeError as error:
        if not is_loss(error):
            raise
        raise lost_rank(during, suspects) from error


def set_timeout(seconds: float, groups: Sequence[Any]) -> None:
    """Let whatever waits in these process groups give up after `seconds`."""
    for group in groups:
        torch.distributed.set_timeout(datetime.timedelta(seconds=seconds), group)


def step_groups() -> list[Any]:
    """The groups over which upstream's part of a step reaches other ranks of a pipeline.

    Messages between stages, and the gradient's norm and whether it is finite.
    """
    return [
        parallel_state.get_pipeline_model_parallel_group(),
        parallel_state.get_model_parallel_group(),
        parallel_state.get_expert_tensor_model_pipeline_parallel_group(),
    ]
