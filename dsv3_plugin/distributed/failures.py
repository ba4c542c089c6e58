"""A rank that is gone: how its loss shows, how it is named, and how long to wait for one.

A wait that fails because a rank died says "connection closed", and one that is stuck "timed out".
In a world of two it is the other one. Among several it need not be the one waited for, who may
itself have been waiting: then the ranks are asked (`distributed.missing_ranks`).
"""

import contextlib
import datetime
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from dsv3_plugin.distributed.missing_ranks import find_missing
from dsv3_plugin.errors import Passing, causes, user_error_in

_SIGNS = (
    "connection closed",
    "connection reset",
    "connection refused",
    "connection was likely closed",
    "broken pipe",
    "timed out",
    "timeout",
    "remote process exited",
    "nccl communicator was aborted",
)


class LostRank(Passing):
    """Another rank died or did not answer in time. Who trains adds which step it was."""


def is_loss(error: BaseException) -> bool:
    """Whether something failed for want of another rank: the one place that decides it.

    Of a collective by what gloo and NCCL say then; the store of the rendezvous has errors of its
    own. What failed may have been wrapped since, as torch does with the errors of a save.
    """
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        return False
    return any(_tells_of_loss(cause) for cause in causes(error))


def _tells_of_loss(error: BaseException) -> bool:
    if isinstance(error, (dist.DistNetworkError, dist.DistStoreError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def lost_rank(during: str, peers: Sequence[int]) -> LostRank:
    """The sentence for a wait that failed.

    Args:
        during: what this rank was doing.
        peers: global ranks of those it waited for, directly or through others.
    """
    me = dist.get_rank()
    others = [rank for rank in peers if rank != me]
    missing = others if dist.get_world_size() == 2 else find_missing(others)
    return LostRank(
        f"rank {me} lost {among(missing)} during {during}: it died or gave no sign in time; see "
        f"the end of that rank's log"
    )


@contextlib.contextmanager
def naming_lost(during: str, peers: Sequence[int]) -> Iterator[None]:
    """Turn the failure of what is inside into `LostRank`, where it is for want of a rank.

    Args:
        during: what this rank is doing.
        peers: global ranks of those it waits for, directly or through others.
    """
    try:
        yield
    except BaseException as error:  # torch's CheckpointException is no Exception
        if user_error_in(error) is not None or not is_loss(error):
            raise
        raise lost_rank(during, peers) from error


def among(ranks: Sequence[int]) -> str:
    """`rank 3`, or `one of ranks 3, 4`."""
    names = ", ".join(map(str, ranks))
    return f"rank {names}" if len(ranks) == 1 else f"one of ranks {names}"


def set_timeout(seconds: float) -> None:
    """Let whatever this rank waits for, in any process group there is, give up after `seconds`."""
    for group in distributed_c10d._world.pg_map:
        dist.set_timeout(datetime.timedelta(seconds=seconds), group)


def timeout_of(group: dist.ProcessGroup) -> datetime.timedelta:
    """How long the collectives of `group` wait for a peer."""
    device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
    options = group._get_backend(device).options
    # A group that only pretends has none.
    return dist.default_pg_timeout if options is None else options._timeout
