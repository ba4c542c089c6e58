"""A long schedule followed from two shorter ones, against the long one simulated."""

import random

import pytest

from dsv3_plugin.planner.pipeline_times import pipeline_times, repeated_pipeline_times
from dsv3_plugin.schedules.costs import Costs, sized_stages
from dsv3_plugin.schedules.registry import SCHEDULES


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
    kind = SCHEDULES[name]

    def make(number):
        return kind.schedule(pp, number, stages, overlap=overlap)

    schedule = make(micro_batches)
    copies = len(schedule.streams)
    rng = random.Random(0)
    for _ in range(3):
        sizes = [rng.uniform(0.5, 1.5) for _ in range(schedule.num_stages // copies)]
        costs = sized_stages(Costs(latency=0.02, occupancy=0.01), sizes).repeated(copies)
        simulated = pipeline_times(schedule, costs)
        followed = repeated_pipeline_times(
            lambda number, costs=costs: pipeline_times(make(number), costs), pp, micro_batches
        )
        assert followed.makespan == pytest.approx(simulated.makespan, rel=tolerance)
        assert followed.busy == pytest.approx(simulated.busy, rel=tolerance)
