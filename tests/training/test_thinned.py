"""How often the load of each expert is written."""

from dsv3_plugin.training.metrics import thinned
from tests.small_runs import STEPS, records


def test_all_but_the_load_of_experts_is_in_every_line(trained):
    steps = [line for line in records(trained.folder) if "loss" in line]
    told = [line["iteration"] for line in steps if "expert_load" in line]
    assert told == [1, *range(2, STEPS + 1, 2)]  # log_interval is 2
    for line in steps:
        assert line.keys() >= {"rank_load", "node_load", "max_vio", "traffic"}


def test_a_line_of_deepseek_v3_is_small():
    numbers = {"expert_load": {}, "rank_load": {}, "loss": 2.0}
    assert thinned(numbers, 1, 100) == numbers
    assert thinned(numbers, 200, 100) == numbers
    assert thinned(numbers, 201, 100) == {"rank_load": {}, "loss": 2.0}
