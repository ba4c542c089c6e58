"""List scheduling: valid, within the limit, never below the bound, and the same as ever."""

import hashlib
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.schedules.actions import csv_text
from dsv3_plugin.schedules.placement import stage_placement
from dsv3_plugin.schedules.search.list_scheduling import list_schedule
from dsv3_plugin.schedules.search.lower_bound import lower_bound
from dsv3_plugin.schedules.search.policy import mutated, random_policy
from dsv3_plugin.schedules.search.problem import Problem
from dsv3_plugin.schedules.simulate import simulate
from dsv3_plugin.schedules.validate import validate
from tests.schedules.search.problems import even, of_rows, problems


@given(problems(), st.integers(0, 1000))
@settings(max_examples=80)
def test_list_schedules_are_valid_keep_the_limit_and_respect_the_bound(problem, seed):
    rng = random.Random(seed)
    bound = lower_bound(problem)
    for _ in range(4):
        outcome = list_schedule(problem, random_policy(problem, rng))
        if outcome is None:
            continue
        makespan, rows = outcome
        schedule = of_rows(rows)
        validate(schedule)
        timeline = simulate(schedule, problem.costs)
        assert timeline.makespan <= makespan + 1e-9  # it may have waited on purpose
        assert max(timeline.peak_activations) <= problem.limit + 1e-9
        assert timeline.makespan >= bound - 1e-9


def test_policies_give_the_schedules_that_they_always_gave():
    """Which schedules a seed finds must not change unnoticed, in random numbers or in choices."""
    rng = random.Random(11)
    problem = Problem(stage_placement(4, 2), 7, even(4, latency=0.25), 3.5)
    policy = random_policy(problem, rng)
    digest, makespans = hashlib.sha256(), []
    for _ in range(200):
        outcome = list_schedule(problem, policy)
        if outcome is not None:
            makespan, rows = outcome
            makespans.append(makespan)
            digest.update(csv_text(rows).encode())
        near = rng.random() < 0.5
        policy = mutated(policy, problem, rng) if near else random_policy(problem, rng)
    assert (len(makespans), min(makespans), sum(makespans)) == (169, 27.75, 5966.5)
    assert digest.hexdigest()[:16] == "7a113471a29848b6"
