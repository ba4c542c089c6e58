"""Search: valid, within its limit, deterministic, never below its bound, better where it counts."""

import hashlib

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.stage_costs import even_layers, model_stages
from dsv3_plugin.recipe.load import load_model
from dsv3_plugin.schedules.actions import Overlap, csv_text
from dsv3_plugin.schedules.costs import Costs, sized_stages
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.placement import stage_placement
from dsv3_plugin.schedules.search.search import search
from dsv3_plugin.schedules.simulate import simulate
from tests.schedules import torch_schedules
from tests.schedules.search.problems import even


def test_few_micro_batches_on_many_ranks():
    """P=16, M=20: DualPipeV does not exist; Megatron's overlapped v4 takes 68.875 and holds 20."""
    found = search(16, 20, even(16), 16.5, effort=0.05)
    assert found.timeline.makespan < 68.875
    assert max(found.timeline.peak_activations) <= 16.5
    assert found.bound == 65.5
    assert found.published == {"zbv": 71.0, "1f1b_v": 90.0}
    text = [[str(a) for a in row] for row in found.schedule.rows]
    assert torch_schedules.runs(text, found.schedule.stage_ranks, 20)


def test_the_uneven_stages_of_deepseek_v3():
    """P=16, M=60, stages by FLOPs: more than 3% under DualPipeV at the same memory."""
    model = load_model("deepseek-v3")
    layers = even_layers(model, stage_placement(16, 2))
    assert layers == [1, *[2] * 30, 0]
    costs = model_stages(model, layers, 16, Costs())
    theirs = simulate(dualpipe_v(16, 60), costs)
    limit = max(theirs.peak_activations)
    found = search(16, 60, costs, limit, effort=0.02)
    assert found.timeline.makespan < 0.97 * theirs.makespan
    assert max(found.timeline.peak_activations) <= limit + 1e-9
    assert found.distance < 0.1


def test_equal_stages_where_dualpipe_v_is_strong():
    found = search(4, 10, even(4), 4.5, effort=0.1)
    assert found.published["dualpipe_v"] == 29.5
    assert found.timeline.makespan <= 29.25
    assert found.bound == 28.5


@pytest.mark.parametrize("limit", [3.0, 4.5])
def test_less_memory_costs_time(limit):
    found = search(6, 12, even(6), limit, effort=0.05)
    assert max(found.timeline.peak_activations) <= limit
    assert found.timeline.makespan >= found.bound
    # 1F1B holds 6 and takes 51.
    assert found.timeline.makespan < 51


@pytest.mark.parametrize(
    ("pp", "vp", "micro_batches"), [(4, 1, 6), (2, 4, 4), (3, 2, 1), (1, 2, 3)]
)
def test_other_placements_and_sizes(pp, vp, micro_batches):
    found = search(pp, micro_batches, even(pp, vp, latency=0.1), pp + 2, effort=0.02)
    assert found.schedule.pp == pp
    assert found.schedule.num_stages == pp * vp
    assert found.schedule.num_micro_batches == micro_batches
    assert tuple(found.schedule.stage_ranks.values()) == stage_placement(pp, vp)
    assert found.timeline.makespan >= found.bound - 1e-9
    assert all(found.timeline.makespan <= other for other in found.published.values())


@pytest.mark.parametrize(
    ("pp", "vp", "micro_batches", "limit", "latency", "makespan", "digest"),
    [
        (4, 2, 5, 4.5, 0.0, 16.0, "f2385f647a5e7c3d"),
        (4, 1, 6, 4.5, 0.25, 24.0, "d3a931ccae0c50af"),
        (2, 4, 6, 3.0, 0.25, 19.25, "eb9a3e814803f3fe"),
        (6, 2, 8, 3.0, 0.0, 34.0, "42b3122ffefa5167"),
    ],
)
def test_what_a_seed_finds_does_not_change(pp, vp, micro_batches, limit, latency, makespan, digest):
    costs = even(pp, vp, latency=latency)
    found = search(pp, micro_batches, costs, limit, seed=7, effort=0.02)
    assert found.timeline.makespan == makespan
    text = csv_text(found.schedule.rows)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_a_seed_gives_one_result():
    once, again = (search(4, 5, even(4), 4.5, seed=3, effort=0.02) for _ in range(2))
    assert once == again


@pytest.mark.parametrize(("pp", "micro_batches", "limit"), [(4, 10, 4.5), (3, 5, 2.0)])
def test_more_effort_never_finds_a_worse_schedule(pp, micro_batches, limit):
    efforts = (0.0, 0.002, 0.01, 0.03, 0.05, 0.06)  # the first round ends at 1/21
    found = [search(pp, micro_batches, even(pp), limit, effort=effort) for effort in efforts]
    makespans = [one.timeline.makespan for one in found]
    assert makespans == sorted(makespans, reverse=True)
    assert makespans[-1] < makespans[0]


def test_bad_requests_are_refused():
    with pytest.raises(UserError, match=r"more than the limit of 0\.5"):
        search(4, 8, even(4), 0.5)
    with pytest.raises(UserError, match="same number of stages"):
        search(3, 8, even(4), 4.0)
    with pytest.raises(UserError, match="at least one micro-batch"):
        search(4, 0, even(4), 4.0)


def test_pairs_are_formed_only_where_they_save():
    costs = sized_stages(Costs(), [0.5] * 8, hidden=[0.0] * 8)
    found = search(4, 8, costs, 4.5, effort=0.02)
    assert not any(isinstance(a, Overlap) for row in found.schedule.rows for a in row)
