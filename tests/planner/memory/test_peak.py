"""The few moments kept of a rank's order hold the most that any moment does."""

import random

import pytest

from dsv3_plugin.planner.memory.activations import StageBytes
from dsv3_plugin.planner.memory.peak import _held, _moments, fullest, rank_orders
from dsv3_plugin.schedules.placement import placement_of
from dsv3_plugin.schedules.registry import SCHEDULES

SIZES = [
    ("1f1b", 4, 12, None),
    ("zb1p", 4, 12, None),
    ("zbv", 4, 12, None),
    ("interleaved", 4, 12, 3),
    ("dualpipe", 4, 12, None),
    ("dualpipe_v", 4, 13, None),
]


@pytest.mark.parametrize(("name", "ranks", "micro_batches", "chunks"), SIZES)
def test_no_moment_holds_more(name: str, ranks: int, micro_batches: int, chunks: int) -> None:
    schedule = SCHEDULES[name].schedule(ranks, micro_batches, chunks)
    placement = placement_of(schedule)
    draw = random.Random(0)
    for rank, order in enumerate(rank_orders(schedule, placement)):
        stages = placement.chunks[rank]
        everything = [
            *_moments(
                [action for _, action in schedule.actions(rank)],
                {stage: index for index, stage in enumerate(stages)},
            )
        ]
        assert len(order.moments) < len(everything)
        for _ in range(20):
            costs = [
                StageBytes(*(draw.random() for _ in StageBytes._fields))._replace(batch=0.0)
                for _ in stages
            ]
            most = max(_held(moment, costs).total for moment in everything)
            assert fullest(order, costs).total == pytest.approx(most)
            between = [_held(moment, costs).total for moment in everything if moment.between]
            assert fullest(order, costs, between=True).total == pytest.approx(max(between))


def test_1f1b_holds_as_many_micro_batches_as_ranks_follow() -> None:
    schedule = SCHEDULES["1f1b"].schedule(4, 12)
    one = StageBytes(1.0, *[0.0] * (len(StageBytes._fields) - 1))
    held = [fullest(order, [one]).total for order in rank_orders(schedule, placement_of(schedule))]
    assert held == [4.0, 3.0, 2.0, 1.0]
