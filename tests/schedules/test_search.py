"""Search: valid, within its limit, deterministic, never below its bound, better where it counts."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.stage_costs import even_layers, model_stages
from dsv3_plugin.recipe.load import load_model
from dsv3_plugin.schedules.actions import BACKWARD, INPUT, WEIGHT, Overlap, Schedule
from dsv3_plugin.schedules.costs import Costs, StageCosts, even_stages, sized_stages
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.placement import stage_placement
from dsv3_plugin.schedules.search.building_blocks import blocks, repeated
from dsv3_plugin.schedules.search.list_scheduling import Problem, list_schedule, random_policy
from dsv3_plugin.schedules.search.local_search import fuse_backwards, improve
from dsv3_plugin.schedules.search.lower_bound import lower_bound
from dsv3_plugin.schedules.search.search import search
from dsv3_plugin.schedules.simulate import simulate
from dsv3_plugin.schedules.validate import validate
from dsv3_plugin.schedules.zbv import zbv
from tests.schedules import torch_schedules


def even(pp: int, vp: int = 2, **costs: float) -> StageCosts:
    return sized_stages(Costs(**costs), [1 / vp] * (pp * vp))


def of_rows(rows) -> Schedule:
    return Schedule("rows", tuple(tuple(row) for row in rows))


def rows_of(schedule: Schedule):
    return [[action for _, action in schedule.actions(rank)] for rank in range(schedule.pp)]


def test_few_micro_batches_on_many_ranks():
    """P=16, M=20: DualPipeV does not exist; Megatron's overlapped v4 takes 68.875 and holds 20."""
    found = search(16, 20, even(16), 16.5, effort=0.05)
    assert found.timeline.makespan < 68.875
    assert max(found.timeline.peak_activations) <= 16.5
    assert found.bound == 65.5
    assert found.published == {"zbv": 71.0}
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


@st.composite
def problems(draw) -> Problem:
    pp, vp = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    stages = pp * vp
    times = st.lists(st.integers(1, 6), min_size=stages, max_size=stages)
    forward, input_, weight = (draw(times) for _ in range(3))
    shares = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=stages, max_size=stages))
    activation = draw(times)
    placement = stage_placement(pp, vp)
    costs = StageCosts(
        forward=tuple(map(float, forward)),
        input=tuple(map(float, input_)),
        weight=tuple(map(float, weight)),
        hidden=tuple(
            share * min(f, i) for share, f, i in zip(shares, forward, input_, strict=True)
        ),
        activation=tuple(map(float, activation)),
        latency=draw(st.sampled_from([0.0, 0.5])),
    )
    one = max(
        sum(a for a, rank in zip(activation, placement, strict=True) if rank == r)
        for r in range(pp)
    )
    limit = one * draw(st.sampled_from([1, 1.5, 3, 10]))
    return Problem(placement, draw(st.integers(1, 6)), costs, limit)


@given(problems(), st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
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


@given(problems(), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
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


def test_the_bound_is_met_by_a_schedule_without_idle_time():
    """One rank: nothing to wait for, and pairs for all but the first forward and last backward."""
    problem = Problem((0,), 4, even(1, 1), 10.0)
    assert lower_bound(problem) == 1 + 3 * 2.5 + 2


def test_fusing_puts_split_backwards_together():
    """ZB-V on one rank: every I is followed by its W."""
    schedule = zbv(1, 4)
    problem = Problem((0, 0), 4, even(1), 10.0)
    fused = fuse_backwards(problem, rows_of(schedule))
    kinds = [part.kind for row in fused for action in row for part in action.parts]
    assert INPUT not in kinds
    assert WEIGHT not in kinds
    assert kinds.count(BACKWARD) == 8


@pytest.mark.parametrize("pp", [4, 6])
def test_repeated_blocks_are_valid_and_reach_a_third_of_the_memory(pp):
    """The paper's V-Min holds (P + 4) / 3 micro-batches."""
    peaks = {}
    for number, block in enumerate(blocks(pp)):
        leanest = max(block.memory(rank, 0.5, 0.5) for rank in range(pp))
        if number % 197 and leanest > (pp + 4) / 3:
            continue
        schedule = of_rows(repeated(block, pp, 3 * pp))
        validate(schedule)
        peaks[block] = max(simulate(schedule, even_stages(schedule, Costs())).peak_activations)
        assert peaks[block] <= leanest + 1.0
    assert min(peaks.values()) <= (pp + 4) / 3


def test_costs_of_a_models_stages():
    model = load_model("deepseek-v3")
    costs = model_stages(model, [1, *[2] * 30, 0], 16, Costs())
    assert sum(costs.forward) == pytest.approx(16)
    # The head and the MTP layer (its head, its projection and one layer) are worth 3.9 layers.
    assert costs.forward[31] / costs.forward[20] * 2 == pytest.approx(3.92, abs=0.02)
    assert costs.hidden[0] == costs.hidden[1] / 2 == 0  # dense layers exchange nothing
    assert costs.hidden[31] == pytest.approx(costs.hidden[20] / 2)
    assert costs.activation[0] == costs.activation[31] == pytest.approx(16 / 62)
    with pytest.raises(UserError, match="60 layers together, but deepseek-v3 has 61"):
        model_stages(model, [2] * 30 + [0, 0], 16, Costs())


def test_pairs_are_formed_only_where_they_save():
    costs = sized_stages(Costs(), [0.5] * 8, hidden=[0.0] * 8)
    found = search(4, 8, costs, 4.5, effort=0.02)
    assert not any(isinstance(a, Overlap) for row in found.schedule.rows for a in row)
