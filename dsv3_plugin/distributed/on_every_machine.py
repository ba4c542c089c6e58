"""What every machine of a run has to have: one rank looks on each, and all hear what is missing.

Through the store of the rendezvous, as what rank 0 does for all: before the trainer there are no
groups, and a look may take longer than a collective waits.
"""

from collections.abc import Callable

import torch.distributed as dist
from torch.distributed import distributed_c10d

from dsv3_plugin.distributed.rank_zero_first import FOREVER
from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import number_of


def looked_at(what: str, look: Callable[[], None] | None, machine: str) -> Callable[[], None]:
    """Look on this machine, unless another rank of it does; every rank of the world calls it.

    Args:
        what: a name for the look, which comes once in a world.
        look: raises UserError for what is not here; None: this rank has no need of it.
        machine: the name of this one.

    Returns:
        For rank 0: waits until all have looked, and raises UserError with a sentence that came,
        behind the machine's name where there are several.
    """
    store, key = distributed_c10d._get_default_store(), f"dsv3_plugin/{what}"
    if store.add(f"{key}/on/{machine}", 1) == 1:
        store.add(f"{key}/machines", 1)
    if look is not None and store.add(f"{key}/looks/{machine}", 1) == 1:
        try:
            look()
        except UserError as error:
            if store.add(f"{key}/failed", 1) == 1:
                store.set(f"{key}/sentence", f"{machine}\n{error}")
    if store.add(f"{key}/done", 1) == dist.get_world_size():
        store.set(f"{key}/over", "")
    return lambda: _refuse(store, key)


def _refuse(store: dist.Store, key: str) -> None:
    store.wait([f"{key}/over"], FOREVER)
    if not (failed := store.add(f"{key}/failed", 0)):
        return
    machine, _, sentence = store.get(f"{key}/sentence").decode().partition("\n")
    if store.add(f"{key}/machines", 0) == 1:
        raise UserError(sentence)
    more = f" and {number_of(failed - 1, 'other machine')}" if failed > 1 else ""
    raise UserError(f"on {machine}{more}: {sentence}")
