"""Work that rank 0 does for all: the others wait, and have its result or the sentence of its error.

Through the store of the rendezvous and not by a collective: a collective gives up after the run's
timeout, and building a large dataset takes longer.
"""

import datetime
from collections.abc import Callable

import torch.distributed as dist
from torch.distributed import distributed_c10d

from dsv3_plugin.errors import SaidElsewhere, UserError

_RESULT, _ERROR = "result\n", "error\n"
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
        UserError: what `work` raised, on rank 0; its sentence, on the others (SaidElsewhere).
        TimeoutError: rank 0 has given no answer, or is gone.
    """
    store, rank = distributed_c10d._get_default_store(), dist.get_rank()
    key = f"dsv3_plugin/{what}"
    key += f"/{store.add(f'{key}/calls of rank {rank}', 1)}"
    if rank == 0:
        try:
            result = work()
        except UserError as error:
            store.set(key, _ERROR + str(error))
            raise
        store.set(key, _RESULT + result)
        return result
    try:
        store.wait([key], timeout or FOREVER)
    except RuntimeError as error:  # torch's DistStoreError among them
        if timeout is None:
            raise
        raise TimeoutError(f"no answer from rank 0 to {what}") from error
    answer = store.get(key).decode()
    if answer.startswith(_ERROR):
        raise SaidElsewhere(answer.removeprefix(_ERROR))
    return answer.removeprefix(_RESULT)
