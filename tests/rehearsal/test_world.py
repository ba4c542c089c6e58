"""A world in which nobody else is: what is counted of the groups that are made in it."""

import torch.distributed as dist

from dsv3_plugin.pipeline import replicas
from dsv3_plugin.rehearsal.world import fake_world
from tests.forked import answer_of

RANKS, PIPELINE = 2048, 16
PER_PLACE = RANKS // PIPELINE

MIRROR = """
for pipeline in range(per_place):
    for rank in range(places // 2):
        dist.new_group([rank * per_place + pipeline, (places - 1 - rank) * per_place + pipeline])
"""
"""Every rank helps to make the groups of all."""
ALONE = """
dist.new_group([0, ranks - per_place], use_local_synchronization=True)
"""


def _made(program: str, module: str, answer) -> None:
    """What was counted of a program of a module, on rank 0 of the full recipe's world."""
    with fake_world(0, RANKS, 8) as world:
        sizes = {"ranks": RANKS, "places": PIPELINE, "per_place": PER_PLACE}
        exec(program, {"__name__": module, "dist": dist, **sizes})
        answer.send((world.asked_here, world.groups, world.megatrons, len(world.made_together)))


def counted(program: str, module: str = replicas.__name__) -> tuple[int, int, int, int]:
    return answer_of(_made, program, module)


def test_groups_of_a_mirror_that_all_ranks_make_are_counted_on_each() -> None:
    assert counted(MIRROR) == (1024, 1, 0, 1024)


def test_one_that_its_members_make_by_themselves_is_one() -> None:
    assert counted(ALONE) == (1, 1, 0, 0)


def test_upstreams_own_are_none_of_ours() -> None:
    assert counted(ALONE, "megatron.core.parallel_state") == (0, 1, 1, 0)
