"""The lower bound is one, and can be met; what the search finds is held against it elsewhere."""

from dsv3_plugin.schedules.search.lower_bound import lower_bound
from dsv3_plugin.schedules.search.problem import Problem
from tests.schedules.search.problems import even


def test_the_bound_is_met_by_a_schedule_without_idle_time():
    """One rank: nothing to wait for, and pairs for all but the first forward and last backward."""
    problem = Problem((0,), 4, even(1, 1), 10.0)
    assert lower_bound(problem) == 1 + 3 * 2.5 + 2
