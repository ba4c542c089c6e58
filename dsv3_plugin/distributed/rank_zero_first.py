"""Work that rank 0 does for all: the others wait, and have its result or the sentence of its error.

Through the store of the rendezvous and not by a collective: a collective gives up after the run's
timeout, and building a large dataset takes longer.
"""

import contextlib
import datetime
from collections.abc import Callable

import torch.distributed as dist
from torch.distributed import distributed_c10d

from dsv3_plugin.distributed.failures import LostRank
from dsv3_plugin.errors import Passing, PassingElsewhere, SaidElsewhere, UserError

_RESULT, _ERROR, _PASSING = "result\n", "error\n", "passing\n"
_HEARD = datetime.timedelta(seconds=10)
"""How long rank 0, which may hold the store, stays until the others have its sentence."""
FOREVER = datetime.timedelta(days=365)
"""However long others work."""


def rank_zero_first(
    what: str, work: Callable[[], str], timeout: datetime.timedelta | None = None
) -> str:
    """Do `work` on rank 0 alone; every rank of the world must call it.

    Args:
        what: a name for the work. It may come again: the n-th calls of all ranks belong together.
        work: makes the result, a text.
        timeout: how long the others wait; None: however long it takes.

    Returns:
        What `work` returned, on every rank.

    Raises:
        UserError: what `work` raised, on rank 0; its sentence, on the others (SaidElsewhere, and
            Passing where it was).
        LostRank: rank 0 is gone, and has said nothing.
        TimeoutError: rank 0 has given no answer in that time.
    """
    store, rank = distributed_c10d._get_default_store(), dist.get_rank()
    key = f"dsv3_plugin/{what}"
    key += f"/{store.add(f'{key}/calls of rank {rank}', 1)}"
    if rank == 0:
        try:
            result = work()
        except UserError as error:
            store.set(key, (_PASSING if isinstance(error, Passing) else _ERROR) + str(error))
            # Who raises this ends, and with it the store that they ask.
            others = [_heard(key, other) for other in range(1, dist.get_world_size())]
            with contextlib.suppress(RuntimeError):
                store.wait(others, _HEARD)
            raise
        store.set(key, _RESULT + result)
        return result
    try:
        store.wait([key], timeout or FOREVER)
        answer = store.get(key).decode()
        if not answer.startswith(_RESULT):
            store.set(_heard(key, rank), "")
    except RuntimeError as error:  # torch's DistStoreError among them
        if timeout is not None:
            raise TimeoutError(f"no answer from rank 0 to {what}") from error
        if not isinstance(error, dist.DistNetworkError):
            raise
        # Not by a question to the others, which would go through the same store.
        raise LostRank(
            f"rank {rank} lost rank 0 during {what}: it died; see the end of that rank's log"
        ) from error
    if answer.startswith(_PASSING):
        raise PassingElsewhere(answer.removeprefix(_PASSING))
    if answer.startswith(_ERROR):
        raise SaidElsewhere(answer.removeprefix(_ERROR))
    return answer.removeprefix(_RESULT)


def _heard(key: str, rank: int) -> str:
    """Where a rank says that it has rank 0's sentence."""
    return f"{key}/heard by {rank}"
