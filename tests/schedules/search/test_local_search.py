"""Local search: valid schedules within the limit, never longer than where it set out."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.schedules.actions import BACKWARD, INPUT, WEIGHT, Schedule
from dsv3_plugin.schedules.search.list_scheduling import list_schedule
from dsv3_plugin.schedules.search.local_search import fuse_backwards, improve
from dsv3_plugin.schedules.search.lower_bound import lower_bound
from dsv3_plugin.schedules.search.policy import random_policy
from dsv3_plugin.schedules.search.problem import Problem
from dsv3_plugin.schedules.simulate import simulate
from dsv3_plugin.schedules.validate import validate
from dsv3_plugin.schedules.zbv import zbv
from tests.schedules.search.problems import even, of_rows, problems


def rows_of(schedule: Schedule):
    return [[action for _, action in schedule.actions(rank)] for rank in range(schedule.pp)]


@given(problems(), st.integers(0, 1000))
@settings(max_examples=40)
def test_local_search_only_improves(problem, seed):
    rng = random.Random(seed)
    outcome = list_schedule(problem, random_policy(problem, rng))
    if outcome is None:
        return
    before, rows = outcome
    bound = lower_bound(problem)
    better = improve(problem, rows, rng, 20_000, bound)
    fused = fuse_backwards(problem, better)
    for result in (better, fused):
        schedule = of_rows(result)
        validate(schedule)
        timeline = simulate(schedule, problem.costs)
        assert bound - 1e-9 <= timeline.makespan <= before + 1e-9
        assert max(timeline.peak_activations) <= problem.limit + 1e-9


def test_fusing_puts_split_backwards_together():
    """ZB-V on one rank: every I is followed by its W."""
    schedule = zbv(1, 4)
    problem = Problem((0, 0), 4, even(1), 10.0)
    fused = fuse_backwards(problem, rows_of(schedule))
    kinds = [part.kind for row in fused for action in row for part in action.parts]
    assert INPUT not in kinds
    assert WEIGHT not in kinds
    assert kinds.count(BACKWARD) == 8
