"""A link to some members of a group: rows are sent and counted, and a failure names the peer.

The two hops, the counts and their answers all pass through here.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from dsv3_plugin.dispatch.topology import Topology
from dsv3_plugin.dispatch.traffic import Traffic, gathered, link_class
from dsv3_plugin.distributed.failures import naming_lost, timeout_of
from dsv3_plugin.distributed.missing_ranks import answer_searches
from dsv3_plugin.distributed.on_host import OnHost
from dsv3_plugin.distributed.overlap import wait


@dataclass
class Pending:
    """Rows on their way. `wait` returns them, once."""

    rows: torch.Tensor
    link: "Link"
    passage: str
    work: dist.Work | None
    sent: torch.Tensor | None = None  # kept alive until the exchange is over

    def wait(self) -> torch.Tensor:
        """The received rows, `[sum(receive), width]`.

        Raises:
            LostRank: a peer died or did not answer within the group's timeout.
        """
        if self.work is not None:
            with self.link.naming_peers(self.passage):
                wait(self.work)
            self.work = self.sent = None
        return self.rows


@dataclass(frozen=True)
class Link:
    """This rank's connection with some members of the expert-parallel group.

    Attributes:
        topology: of the whole group.
        rank: this one, in the whole group.
        peers: the members, in the whole group's numbers, this one included.
        group: theirs; None where this rank is alone and nothing has to travel.
        global_ranks: the members' ranks in the world.
        traffic: where what is sent is counted.
    """

    topology: Topology
    rank: int
    peers: Sequence[int]
    group: dist.ProcessGroup | None
    global_ranks: Sequence[int]
    traffic: Traffic = field(compare=False)

    def post(
        self, rows: torch.Tensor, send: Sequence[int], receive: Sequence[int], passage: str
    ) -> Pending:
        """Starts sending rows, and receiving as many as the peers have for us.

        Args:
            rows: `[sum(send), width]`, grouped by peer.
            send, receive: number of rows per peer.
            passage: what is under way, for an error.
        """
        if self.group is None:
            return Pending(rows, self, passage, None)
        width = rows.shape[1] * rows.element_size()
        for peer, number in zip(self.peers, send, strict=True):
            self.traffic.add(link_class(self.topology.node_of, self.rank, peer), number * width)
        rows = rows.contiguous()
        received = rows.new_empty(sum(receive), rows.shape[1])
        with self.naming_peers(passage):
            work = dist.all_to_all_single(
                received, rows, list(receive), list(send), group=self.group, async_op=True
            )
        return Pending(received, self, passage, work, rows)

    def gather(self, values: torch.Tensor, passage: str) -> torch.Tensor:
        """`values` `[n]` of every member, `[members, n]`, on the host: the one synchronisation.

        In an overlapped pair it waits for the counts alone, and not for what the other side has
        given its own stream meanwhile.
        """
        if self.group is None:
            return values[None].cpu()
        size = values.numel() * values.element_size()
        counted = gathered(self.topology, self.rank, size)
        for link, count in counted.messages.items():
            self.traffic.add(link, size, count)
        everyone = values.new_empty(len(self.peers) * values.numel())
        with self.naming_peers(passage):
            work = dist.all_gather_single(everyone, values, group=self.group, async_op=True)
            counts = OnHost(everyone, work)
            wait(counts)
        return counts.tensor.view(len(self.peers), -1)

    def naming_peers(self, passage: str) -> AbstractContextManager[None]:
        """Turns a failed collective into the sentence that names the rank that is gone."""
        return naming_lost(f"the {passage}", self.global_ranks)


def connect(
    topology: Topology, group: dist.ProcessGroup, members: Sequence[int], traffic: Traffic
) -> Link:
    """A link among `members` (ranks of the expert-parallel `group`), with the group's timeout.

    Every member must call it, in the same order among the links they share.
    """
    answer_searches()
    rank = dist.get_rank(group)
    world = dist.get_process_group_ranks(group)
    global_ranks = [world[member] for member in members]
    made = None
    if len(members) == len(world):
        made = group if len(world) > 1 else None
    elif len(members) > 1:
        made = _subgroup(global_ranks, group)
    return Link(topology, rank, members, made, global_ranks, traffic)


_SUBGROUP = "dsv3_plugin: expert-parallel ranks of a rail or a node"


def _subgroup(global_ranks: list[int], whole: dist.ProcessGroup) -> dist.ProcessGroup:
    """The group of these ranks: made once in a world, shared by every layer."""
    for group in distributed_c10d._world.pg_map:
        if group.group_desc == _SUBGROUP and dist.get_process_group_ranks(group) == global_ranks:
            return group
    return dist.new_group(
        global_ranks,
        timeout=timeout_of(whole),
        use_local_synchronization=True,
        group_desc=_SUBGROUP,
    )
