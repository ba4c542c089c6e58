"""A long schedule followed from two shorter ones, against the long one simulated."""

import random

import pytest

from dsv3_plugin.planner.memory.peak import rank_orders
from dsv3_plugin.planner.time.pipeline_times import pipeline_times, repeated_pipeline_times
from dsv3_plugin.planner.time.registered import Registered
from dsv3_plugin.schedules.costs import Costs, sized_stages
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.simulate import Program, simulate


@pytest.mark.parametrize(
    ("name", "pp", "micro_batches", "stages", "overlap", "tolerance"),
    [
        ("dualpipe_v", 8, 90, None, False, 1e-9),
        ("dualpipe", 8, 90, None, False, 1e-9),
        ("zbv", 4, 60, None, False, 1e-9),
        ("zb1p", 4, 60, None, False, 1e-9),
        ("interleaved", 4, 64, 3, False, 1e-9),
        ("interleaved", 4, 64, 3, True, 1e-9),
        # Of stages as uneven as these, 1F1B comes to its rhythm late.
        ("1f1b", 8, 90, None, False, 3e-3),
    ],
)
def test_a_long_schedule_repeats_itself(name, pp, micro_batches, stages, overlap, tolerance):
    registered = Registered(name, pp, stages, overlap)
    schedule = registered.schedule(micro_batches)
    copies = len(schedule.streams)
    rng = random.Random(0)
    for _ in range(3):
        sizes = [rng.uniform(0.5, 1.5) for _ in range(schedule.num_stages // copies)]
        costs = sized_stages(Costs(latency=0.02, occupancy=0.01), sizes).repeated(copies)
        simulated = pipeline_times(Program(schedule), costs)
        assert simulated.makespan == simulate(schedule, costs).makespan

        def timed(number, costs=costs):
            return pipeline_times(registered.program(number), costs)

        followed = repeated_pipeline_times(timed, pp, micro_batches)
        assert followed.makespan == pytest.approx(simulated.makespan, rel=tolerance)
        assert followed.busy == pytest.approx(simulated.busy, rel=tolerance)


def test_no_long_schedule_is_over_before_its_slowest_rank():
    """Stages that fill memory and not time: four micro-batches per rank are not yet a rhythm."""
    registered = Registered("zbv", 2)
    costs = sized_stages(Costs(latency=1e-4, occupancy=1e-3), [0.001, 0.23, 0.92, 1.13])
    simulated = pipeline_times(registered.program(400), costs)
    followed = repeated_pipeline_times(
        lambda number: pipeline_times(registered.program(number), costs), 2, 400
    )
    assert followed.makespan > max(followed.busy)
    assert followed.makespan == pytest.approx(simulated.makespan, rel=1e-3)


@pytest.mark.parametrize(
    "kind", [k for k in SCHEDULES.values() if not k.searched], ids=lambda kind: kind.name
)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_long_schedule_holds_what_a_short_one_does(kind, overlap):
    if overlap and kind.make_overlapped is None:
        return
    pp, stages = 4, 2 if kind.takes_stages_per_rank else None
    registered = Registered(kind.name, pp, stages, overlap)
    for micro_batches in (8, 20, 24, 44):
        whole = rank_orders(registered.schedule(micro_batches), kind.placement(pp, stages))
        for order, followed in zip(whole, registered.orders(micro_batches), strict=True):
            assert set(followed.moments) == set(order.moments)
            assert followed.micro_batches == order.micro_batches
            assert followed.pairs == order.pairs
