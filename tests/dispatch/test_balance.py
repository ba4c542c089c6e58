"""MaxVio."""

from dsv3_plugin.dispatch.balance import max_violation


def test_max_violation_is_the_excess_over_the_mean():
    assert max_violation([5, 5, 5, 5]) == 0
    assert max_violation([20, 0, 0, 0]) == 3
    assert max_violation([6, 4, 2]) == 0.5
