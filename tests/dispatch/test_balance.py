"""Load of experts, ranks and nodes, and how far it is from even."""

from dsv3_plugin.dispatch.balance import load_of_nodes, load_of_ranks, max_violation


def test_max_violation_is_the_excess_over_the_mean():
    assert max_violation([5, 5, 5, 5]) == 0
    assert max_violation([20, 0, 0, 0]) == 3
    assert max_violation([6, 4, 2]) == 0.5


def test_ranks_hold_equal_runs_of_experts():
    assert load_of_ranks([1, 2, 3, 4, 5, 6], 3) == [3, 7, 11]


def test_a_node_has_the_load_of_its_ranks():
    assert load_of_nodes([1, 2, 3, 4], [0, 0, 1, 1]) == [3, 7]
    assert load_of_nodes([1, 2, 3, 4], [2, 2, 2, 3]) == [6, 4]
    assert load_of_nodes([5], [0]) == [5]
