"""A world of ranks in which nobody else is there: torch's fake process group, and what it lacks.

Collectives return at once. Groups are counted as they are made, the ones that upstream makes over
gloo among them (which would need somebody to talk to). What ranks tell each other as objects is
what this one says: in a rehearsal they are all in the same place.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from dsv3_plugin.upstream.replace import Replacer


@dataclass
class World:
    """What was made in it.

    Attributes:
        groups: process groups that this rank is in.
        asked: how many groups the rank helped to make, its own and those of others (torch makes
            one group on all ranks of the world at a time, unless it is told to ask members alone).
        asked_here: of those, how many the plugin asked for.
    """

    groups: int = 0
    asked: int = 0
    asked_here: int = 0
    _replacer: Replacer = field(default_factory=Replacer)


@contextlib.contextmanager
def fake_world(rank: int, size: int, per_node: int) -> Iterator[World]:
    """Be a rank of a world that is not there, while the block lasts.

    Args:
        rank: which.
        size: of the world.
        per_node: ranks of a node.
    """
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank % per_node),
        "LOCAL_WORLD_SIZE": str(min(per_node, size)),
    }
    world = World()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    make = dist.new_group

    def new_group(
        ranks: Any = None,
        timeout: Any = None,
        backend: Any = None,
        pg_options: Any = None,
        use_local_synchronization: bool = False,
        group_desc: str | None = None,
        device_id: Any = None,
    ) -> Any:
        world.asked += 1
        world.asked_here += sys._getframe(1).f_globals["__name__"].startswith("dsv3_plugin")
        world.groups += ranks is None or rank in ranks
        return make(ranks, timeout, "fake", None, use_local_synchronization, group_desc, None)

    def all_gather_object(everyone: list[Any], mine: Any, *args: Any, **kwargs: Any) -> None:
        everyone[:] = [mine] * len(everyone)

    for module in ("torch.distributed", "torch.distributed.distributed_c10d"):
        world._replacer.set(f"{module}:new_group", new_group)
        world._replacer.set(f"{module}:all_gather_object", all_gather_object)
    try:
        yield world
    finally:
        world._replacer.restore()
        dist.destroy_process_group()
