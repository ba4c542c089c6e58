"""A process group for every two ranks of a pipeline that send to each other.

On NCCL, what a rank posts at once on one group is one kernel on the group's one stream: it ends
when every partner has posted, and what is posted later waits behind it, be it for another rank.
With one group for the pipeline, neighbours thus wait for each other's neighbours; with one for each
pair, a message waits for nothing that the schedule does not order (`schedules.nccl` has both).
"""

from collections.abc import Iterable

import torch
from torch.distributed import P2POp, ProcessGroup, batch_isend_irecv, distributed_c10d, irecv, isend

from dsv3_plugin.distributed.failures import naming_lost, timeout_of
from dsv3_plugin.schedules.placement import Placement


class Neighbours:
    """The groups of this rank and each of those it exchanges messages with.

    Making it is collective among the ranks of the pipeline, and every pipeline of the world has to
    make its own, so that all ranks go on with as many groups made. A rank makes its own groups
    alone, however large the world is.

    Args:
        placement: says who sends to whom.
        pipeline: the ranks of the pipeline; its timeout is the groups' too.

    Attributes:
        pipeline: as given.
        ranks: the global ranks of the pipeline, in its order.
    """

    def __init__(self, placement: Placement, pipeline: ProcessGroup) -> None:
        self.pipeline = pipeline
        self.ranks = torch.distributed.get_process_group_ranks(pipeline)
        self._groups: dict[int, ProcessGroup] = {}
        me = pipeline.rank()
        with naming_lost("the start of messages between stages", self.ranks):
            _count_groups_alike(pipeline)
            for partners in rounds(placement.neighbours):
                # Alone, where the round has no partner for it: torch's count goes on.
                peer = partners.get(me, me)
                group = torch.distributed.new_group(
                    [self.ranks[rank] for rank in {me, peer}],
                    timeout=timeout_of(pipeline),
                    use_local_synchronization=True,
                    group_desc="PIPELINE_NEIGHBOURS",
                )
                if peer != me:
                    _meet(group, self.ranks[peer])
                    self._groups[peer] = group

    def group(self, peer: int) -> ProcessGroup:
        """The group of this rank and `peer` (a rank of the pipeline)."""
        return self._groups[peer]


def rounds(pairs: Iterable[tuple[int, int]]) -> list[dict[int, int]]:
    """Pairs in rounds in which nobody has more than one partner.

    Taken one round after the other, by everybody, meetings cannot block each other, and those of a
    round are held at once: a line of any length takes two.

    Returns:
        The partner by rank, of each round.
    """
    found: list[dict[int, int]] = []
    for one, other in sorted(pairs):
        room = next((meets for meets in found if one not in meets and other not in meets), None)
        if room is None:
            found.append(room := {})
        room[one], room[other] = other, one
    return found


def _count_groups_alike(pipeline: ProcessGroup) -> None:
    """Let all ranks of the pipeline have made equally many groups in torch's eyes.

    Torch names a group after its ranks and the number of groups made before, and members of a group
    find each other by its name. Stages differ in that number: only those with experts have the
    dispatcher's groups.
    """
    world = distributed_c10d._world
    made = torch.tensor([world.group_count], device=torch.cuda.current_device())
    torch.distributed.all_reduce(made, torch.distributed.ReduceOp.MAX, group=pipeline)
    world.group_count = max(world.group_count, int(made))


def _meet(group: ProcessGroup, peer: int) -> None:
    """Exchange one value with the other rank (its global number) of a group.

    NCCL connects two ranks at their first exchange, which holds up the host until both are there: a
    step could then wait in a circle.
    """
    sent, received = (torch.zeros(1, device=torch.cuda.current_device()) for _ in range(2))
    both = [P2POp(isend, sent, peer, group), P2POp(irecv, received, peer, group)]
    for work in batch_isend_irecv(both):
        work.wait()
