"""The balance of a run: its numbers, its table, its picture."""

import json
import math
import random
import weakref

import pytest

from dsv3_plugin.dispatch.balance import max_violation
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.report.balance import (
    LoadHistory,
    draw_load,
    load_mapping,
    load_table,
    main_layers,
)
from dsv3_plugin.report.balance_verdict import EXPLAINED, chance, verdict


def record(step: int) -> dict:
    """Two layers of 16 experts on 4 ranks of 2 nodes; the skew fades with the steps."""
    draw = random.Random(step)
    load = {
        layer: [
            int(100 + draw.random() * 400 / step + 900 * (expert == 3) / step)
            for expert in range(16)
        ]
        for layer in ("1", "2")
    }
    load["2"][7] = 0
    parts = {
        size: {
            layer: [sum(row[i : i + size]) for i in range(0, 16, size)]
            for layer, row in load.items()
        }
        for size in (4, 8)
    }
    return {
        "iteration": step,
        "expert_load": load,
        "rank_load": parts[4],
        "node_load": parts[8],
        "max_vio": {layer: max_violation(row) for layer, row in load.items()},
    }


def without_experts(step: int) -> dict:
    """A record as most are: without the load of each expert."""
    return {name: value for name, value in record(step).items() if name != "expert_load"}


def test_the_table_tells_the_last_step(tmp_path):
    records = [record(1), {"iteration": 1, "validation_loss": 1.0}, record(10), without_experts(11)]
    lines = load_table(LoadHistory(iter(records), tmp_path))
    assert lines[0].startswith("step 10:")
    layer_2 = lines[3].split()
    assert layer_2[0] == "2"
    assert float(layer_2[1]) == pytest.approx(record(10)["max_vio"]["2"], abs=1e-3)
    assert layer_2[-2:] == ["1", "bad"]  # expert 7 is idle, where the mean has over 100 tokens


def test_the_table_says_what_is_worst_and_what_it_costs(tmp_path):
    history = LoadHistory([record(1)], tmp_path)
    said = "\n".join(load_table(history))
    mapping = load_mapping(history)
    worst = max(record(1)["max_vio"].items(), key=lambda layer: layer[1])
    assert f"Layer {worst[0]} is the least even" in said
    assert f"{1 + worst[1]:.3g} times the mean" in said
    ranks = max(max_violation(load) for load in record(1)["rank_load"].values())
    assert mapping["plan"] == f"dsv3 plan RECIPE --imbalance {1 + ranks:.3g}"
    assert mapping["plan"] in said
    assert (mapping["step"], mapping["worst_layer"]) == (1, worst[0])
    assert mapping["imbalance"] == pytest.approx(1 + ranks)
    assert json.loads(json.dumps(mapping)) == mapping
    assert [layer["idle_experts"] for layer in mapping["layers"]] == [0, 1]


def test_layers_of_multi_token_prediction_are_named(tmp_path):
    history = LoadHistory([record(1)], tmp_path, main_layers=2)
    lines = load_table(history)
    assert [line[:9].strip() for line in lines[2:4]] == ["1", "2 (MTP 1)"]
    assert len({len(line) for line in lines[1:4]}) == 1
    assert history.label("3") == "3 (MTP 2)"


def test_a_run_says_how_many_layers_are_main_ones(tmp_path):
    run = RunFolder(tmp_path)
    assert main_layers(run) is None
    run.write_recipe("model: {num_layers: 7}")
    assert main_layers(run) == 7


def test_a_run_without_experts_is_said(tmp_path):
    with pytest.raises(UserError, match="no expert load"):
        LoadHistory([{"iteration": 1, "loss": 2.0}], tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"expert_load": "abc"},
        {"expert_load": {"1": []}},
        {"expert_load": {"1": [1, 2], "2": [3]}},
        {"expert_load": {"1": [0, 0], "2": [0, 0]}},
        {"expert_load": {"1": ["a"], "2": ["b"]}},
        {"expert_load": {"3": [1, 2]}},
        {"expert_load": {"a\nb": [1, 2]}},
        {"rank_load": None},
        {"node_load": {}},
        {"max_vio": {"1": math.nan}},
        {"max_vio": {}},
        {"iteration": 2**70},
    ],
    ids=str,
)
def test_a_record_that_no_run_writes_is_a_sentence(tmp_path, changes):
    with pytest.raises(UserError, match=r"a record in metrics\.jsonl"):
        LoadHistory([record(1) | changes], tmp_path)


@pytest.mark.parametrize("recipe", ["model: tiny", "model: {num_layers: many}", "name: a"])
def test_a_recipe_that_no_run_writes_tells_no_layers(tmp_path, recipe):
    run = RunFolder(tmp_path)
    run.write_recipe(recipe)
    assert main_layers(run) is None


def test_a_name_is_no_mathematics(tmp_path):
    draw_load(LoadHistory([record(1)], tmp_path), tmp_path / "load.png", "a$\\frac$ \udcff")
    assert (tmp_path / "load.png").stat().st_size


class Watched(dict):
    """A record that a weak reference can watch."""


def test_a_history_keeps_numbers_and_one_record(tmp_path):
    watched, held = [], []

    def records():
        for step in range(1, 6):
            told = Watched(record(step) if step in (1, 4) else without_experts(step))
            watched.append(weakref.ref(told))
            yield told
            del told
            held.append(sum(seen() is not None for seen in watched))

    history = LoadHistory(records(), tmp_path)
    assert max(held) <= 2  # the last that tells all, and the one that is read
    assert list(history.steps) == [1, 2, 3, 4, 5]
    assert history.last["iteration"] == 4
    for step in history.steps:
        assert history.experts["2"][step - 1] == pytest.approx(record(step)["max_vio"]["2"])
        nodes = max_violation(record(step)["node_load"]["2"])
        assert history.nodes["2"][step - 1] == pytest.approx(nodes)


def test_a_layer_without_tokens_has_a_gap(tmp_path):
    idle = without_experts(2)
    for name in ("rank_load", "node_load", "max_vio"):
        del idle[name]["1"]
    history = LoadHistory([record(1), idle, record(3)], tmp_path)
    assert [math.isnan(value) for value in history.experts["1"]] == [False, True, False]
    assert [math.isnan(value) for value in history.experts["2"]] == [False] * 3
    draw_load(history, tmp_path / "load.png", "gap")


def test_an_early_violation_leaves_colours_for_the_rest(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.pyplot.close", figures.append)
    history = LoadHistory([record(step) for step in range(1, 2500)], tmp_path)
    history.experts["1"][0] = 9.0
    draw_load(history, tmp_path / "load.png", "early")
    over_steps, over_nodes, over_experts = figures[0].axes[:3]
    image = over_steps.collections[0]
    shade = image.norm([0.2, 0.4, 9.0])
    assert shade[1] - shade[0] > 0.1  # 0.02 on a linear scale
    assert shade[2] == pytest.approx(1)
    # Of the steps that share a column the worst is shown.
    assert image.get_array().shape[1] == 833
    assert "worst of 3 steps" in over_steps.get_title()
    assert len(over_nodes.lines) == 2
    assert over_experts.get_title().endswith("step 2499")


@pytest.mark.parametrize(("most", "end"), [(5, 5.0), (1, 2.0)])
def test_the_largest_load_of_an_expert_has_a_colour_of_its_own(tmp_path, monkeypatch, most, end):
    """Up to that of five times the mean, and not only to twice, where all beyond were one red."""
    figures = []
    monkeypatch.setattr("matplotlib.pyplot.close", figures.append)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: path.touch())
    one = record(1)
    others = (1600 - 100 * most) / 15
    one["expert_load"] = {layer: [100 * most, *[others] * 15] for layer in ("1", "2")}
    draw_load(LoadHistory([one], tmp_path), tmp_path / "load.png", "experts")
    (image,) = figures[0].axes[2].images
    assert image.get_array()[:, 0].tolist() == [most, most]
    assert (image.norm.vmin, image.norm.vcenter, image.norm.vmax) == (0.0, 1.0, end)
    below, twice, largest = image.norm([1.0, 2.0, end])
    assert below == pytest.approx(0.5)
    assert largest == pytest.approx(1.0)
    assert twice < 1 or end == 2.0


@pytest.mark.parametrize(
    ("most", "word"), [(1.04, "good"), (1.72, "fair"), (2.5, "uneven"), (4.0, "bad")]
)
def test_a_load_is_told_in_a_word_by_published_marks(most, word):
    """One expert of 64 above all others, of so many tokens that chance has no part in it."""
    others = (64 - most) / 63
    assert verdict([int(10**6 * most)] + [int(10**6 * others)] * 63) == word
    assert f"{word}:" in EXPLAINED


def test_chance_is_what_even_draws_have():
    """Within a fifth of the mean MaxVio of 200 even draws, which the bound is slightly above."""
    draw = random.Random(0)
    for mean in (10, 100):
        found = []
        for _ in range(200):
            load = [0] * 64
            for _ in range(64 * mean):
                load[draw.randrange(64)] += 1
            found.append(max_violation(load))
            assert verdict(load) == "good" or max_violation(load) > 0.1 + chance(load)
        assert sum(found) / len(found) == pytest.approx(chance([mean] * 64), rel=0.2)
