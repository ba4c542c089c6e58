"""How often the load of each expert is written, and what a line weighs."""

import random
from typing import Any

from dsv3_plugin.dispatch.balance import max_violation
from dsv3_plugin.dispatch.step_metrics import load_of_nodes
from dsv3_plugin.files.metrics_file import MetricsFile
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.training.metrics import thinned
from tests.small_runs import STEPS, records


def test_all_but_the_load_of_experts_is_in_every_line(trained):
    steps = [line for line in records(trained.folder) if "loss" in line]
    told = [line["iteration"] for line in steps if "expert_load" in line]
    assert told == [1, *range(2, STEPS + 1, 2)]  # log_interval is 2
    for line in steps:
        assert line.keys() >= {"rank_load", "node_load", "max_vio", "traffic"}


def test_the_first_step_and_every_hundredth_tell_the_load_of_experts():
    numbers = {"expert_load": {}, "rank_load": {}, "loss": 2.0}
    assert thinned(numbers, 1, 100) == numbers
    assert thinned(numbers, 200, 100) == numbers
    assert thinned(numbers, 201, 100) == {"rank_load": {}, "loss": 2.0}


def deepseek_v3_line(small: dict[str, Any]) -> dict[str, Any]:
    """A line of a small run with the loads of DeepSeek-V3's largest batch: 64 ranks on 8 nodes."""
    recipe = load_recipe("pretrain/deepseek-v3")
    model, ranks, per_node = recipe.model, recipe.parallel.expert, 8
    experts = model.num_moe_experts
    batch = recipe.batch_schedule.batch(recipe.total_tokens) * recipe.data.seq_length
    mean = batch * model.moe_router_topk // experts
    draw = random.Random(0)
    layers = [*model.moe_layers, model.num_layers]  # the last is that of multi-token prediction
    load = {
        str(layer): [round(mean * draw.uniform(0.8, 1.2)) for _ in range(experts)]
        for layer in layers
    }
    own = experts // ranks
    per_rank = {
        layer: [sum(row[own * rank : own * (rank + 1)]) for rank in range(ranks)]
        for layer, row in load.items()
    }
    nodes = [rank // per_node for rank in range(ranks)]
    return small | {
        "expert_load": load,
        "rank_load": per_rank,
        "node_load": {layer: load_of_nodes(row, nodes) for layer, row in per_rank.items()},
        "max_vio": {layer: round(max_violation(row), 4) for layer, row in load.items()},
    }


def test_a_line_of_deepseek_v3_is_small(trained, tmp_path):
    last = [line for line in records(trained.folder) if "expert_load" in line][-1]
    line, interval = deepseek_v3_line(last), 10
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for iteration in range(interval + 1, 2 * interval + 1):
        file.append(thinned(line, iteration, interval))
    *without, whole = (len(text) for text in file.path.read_bytes().splitlines())
    assert len(without) == interval - 1
    # 177 KB with the load of every expert, 41 KB without: most of that is the load of the ranks.
    assert 130_000 < whole - without[0] < 140_000
    assert max(without) < 45_000
