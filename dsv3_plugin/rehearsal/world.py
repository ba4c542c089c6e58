"""A world of ranks in which nobody else is there: torch's fake process group, and what it lacks.

Collectives return at once. Groups are counted as they are made, the ones that upstream makes over
gloo among them (which would need somebody to talk to). What ranks tell each other as objects is
what this one says: in a rehearsal they are all in the same place. All of it is written down in
its order: other ranks have to do the same (`collectives`).
"""

import contextlib
import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from dsv3_plugin.rehearsal.report import Issued
from dsv3_plugin.upstream.replace import Replacer


@dataclass
class World:
    """What was made in it.

    Attributes:
        groups: process groups that this rank is in.
        megatrons: those of them that the plugin did not make.
        asked_here: how many groups the plugin had the rank help to make, its own and those of
            others (torch makes one group on all ranks of the world at a time, unless it is told to
            ask members alone).
        made_together: of all groups, the ones that all ranks of the world make at a time, in order.
        issued: collectives of this rank so far, in order.
    """

    groups: int = 0
    megatrons: int = 0
    asked_here: int = 0
    made_together: list[str] = field(default_factory=list)
    issued: list[Issued] = field(default_factory=list)
    _twins: dict[tuple[int, ...], list[dist.ProcessGroup]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _replacer: Replacer = field(default_factory=Replacer)

    def made(self, ranks: Sequence[int] | None, alone: bool, here: bool, group: Any) -> None:
        """Write down that a group was made.

        Args:
            ranks: its members; None: the whole world.
            alone: they made it by themselves.
            here: the plugin did.
            group: what torch returned: the group, if this rank is in it.
        """
        if not alone:
            self.made_together.append(_told(ranks))
        self.asked_here += here
        if isinstance(group, dist.ProcessGroup):
            self.groups += 1
            self.megatrons += not here
            self.join(group)

    def join(self, group: dist.ProcessGroup) -> None:
        """Be a member of a group."""
        self._twins[_members(group)].append(group)

    def issue(
        self,
        group: dist.ProcessGroup | None,
        operation: str,
        size: int = 0,
        *,
        waits: bool = True,
        said: str = "",
    ) -> None:
        """Write down a collective of this rank.

        Args:
            group: on which; None: the whole world.
            operation: what torch.distributed calls it.
            size: bytes that it was given.
            waits: whether what the rank computes next comes after it.
            said: of objects, what it was given, in short.
        """
        group = group or dist.group.WORLD
        members = _members(group)
        names = [twin.group_name for twin in self._twins[members]]
        twin = names.index(group.group_name)
        self.issued.append(Issued(members, operation, size, twin, waits, said))


def _members(group: dist.ProcessGroup) -> tuple[int, ...]:
    return tuple(dist.get_process_group_ranks(group))


def _told(ranks: Sequence[int] | None) -> str:
    """Members of a group in few words, told so that no two groups are told alike."""
    if ranks is None:
        return "one of all ranks"
    return f"one of {len(ranks)} ranks from {ranks[0]} to {ranks[-1]} ({_digest(list(ranks))})"


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]


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
    world.join(dist.group.WORLD)
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
        here = sys._getframe(1).f_globals["__name__"].startswith("dsv3_plugin")
        group = make(ranks, timeout, "fake", None, use_local_synchronization, group_desc, None)
        world.made(ranks, use_local_synchronization, here, group)
        return group

    def all_gather_object(
        everyone: list[Any], mine: Any, group: Any = None, weights_only: bool = False
    ) -> None:
        world.issue(group, "all_gather_object", said=_digest(mine))
        everyone[:] = [mine] * len(everyone)

    for module in ("torch.distributed", "torch.distributed.distributed_c10d"):
        world._replacer.set(f"{module}:new_group", new_group)
        world._replacer.set(f"{module}:all_gather_object", all_gather_object)
    try:
        yield world
    finally:
        world._replacer.restore()
        dist.destroy_process_group()
