"""The messages of a recipe's pipeline: asked of a child, told to the parent, shown."""

import dataclasses
import json
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from dsv3_plugin.numbers import figure_text
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.planner.resolve import load_resolved
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps
from dsv3_plugin.rehearsal.cases import step_cases
from dsv3_plugin.rehearsal.child import answered
from dsv3_plugin.rehearsal.children import _report
from dsv3_plugin.rehearsal.findings import between_ranks
from dsv3_plugin.rehearsal.rehearsal import Rehearsal, Wanted
from dsv3_plugin.rehearsal.report import Finding, Issued, Messages, RankReport, Request
from dsv3_plugin.rehearsal.stepped import SteppedPipeline, SteppedRank
from dsv3_plugin.report.rehearsal import grids
from dsv3_plugin.report.rehearsal.mapping import mapping
from dsv3_plugin.report.rehearsal.sentences import in_the_end, in_time, of_all, pipelines
from dsv3_plugin.schedules.simulate import simulate

PIPELINE = (
    "parallel.processes=4",
    "parallel.pipeline=4",
    "parallel.expert=1",
    "pipeline.schedule=zbv",
    "pipeline.devices=4",
    "model.num_layers=8",
    "model.moe_layer_freq=[0,1,1,1,1,1,1,1]",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    request = Request("pretrain/tiny", PIPELINE, "cpu", 0, 6, "messages")
    return answered(request, tmp_path_factory.mktemp("scratch"))


def test_every_rank_of_the_recipes_pipeline_posts(report):
    assert report.findings == ()
    # Each of 6 micro-batches, both ways between 8 stages, two of which lie on one rank.
    assert report.messages.messages == 6 * 2 * 6
    assert report.messages.communicators == 2
    assert report.messages.makespan >= report.messages.ideal > 0
    assert len(report.messages.waiting) == 4


def test_a_report_travels_as_json(report):
    assert _report(json.loads(json.dumps(asdict(report)))) == report


@pytest.mark.parametrize(
    ("override", "ranks", "has"),
    [(None, (0,), True), (None, (), False), ("pipeline.executor=upstream", (0,), False)],
)
def test_there_are_messages_where_our_executor_runs_ranks(override, ranks, has):
    words = ("pipeline.schedule=1f1b", override) if override else ()
    recipe = load_resolved("pretrain/tiny", (*PIPELINE, *words), load_cluster("cpu").machine)
    cluster = load_cluster("cpu")
    wanted = Wanted("tiny", (), "cpu", cluster, cluster.machine, recipe, ranks, (), 1.0)
    assert wanted.has_pipeline is has


PLANNED = SimpleNamespace(stages=())


def test_ranks_are_compared_wherever_they_lie_in_their_pipelines():
    """In the same step, as far as they came, from the first group they made on."""

    def stepped(rank: int, size: int, case: str = "case", **fields: Any) -> SteppedRank:
        issued = (Issued((0, 1, 2, 3), "allreduce_", size),)
        fields = {"memory": {"weights": 1}, "collectives": issued, **fields}
        return SteppedRank(case, RankReport(rank, rank // 2, **fields), PLANNED, 0, 0, 0)

    alike = [stepped(0, 8), stepped(1, 8), stepped(2, 8)]
    others = [stepped(3, 64, "another"), stepped(3, 64, memory={})]
    assert list(between_ranks([*alike, *others])) == []
    (finding,) = between_ranks([*alike, stepped(3, 64)])
    assert finding.sentence.startswith("ranks 0 and 3 part at collective 1")
    (finding,) = between_ranks([*alike, stepped(3, 8, made_together=("one of all ranks",))])
    assert finding.sentence.startswith("ranks 0 and 3 part at process group 1")
    built = stepped(3, 8, built_with=(Issued((0, 1, 2, 3), "barrier", 0),))
    (finding,) = between_ranks([*alike, built])
    assert "rank 3 barrier" in finding.sentence


def test_what_queueing_costs_is_told():
    messages = Messages((), 2, 72, 60, 10.1, 10.0, (0.0,))
    assert in_time("zbv", messages) == (
        "zbv: 72 messages in 60 batches, for which a rank has up to 2 process groups; 10.10 s, "
        "1.00 % longer than if none waited for another."
    )
    stuck = Messages((Finding("it would hang"),), 2, 72, 60, None, 10.0, (0.0,))
    assert in_time("zbv", stuck).endswith("a rank has up to 2 process groups.")


def test_who_waits_how_long_and_who_is_slowest_is_told(report):
    cluster = load_cluster("cpu").model_copy(update={"gpus": 4})
    recipe = load_resolved("pretrain/tiny", PIPELINE, cluster.machine)
    plan = make_plan(recipe, cluster, cluster.machine)
    case = step_cases(recipe)[-1]
    phase = next(phase for phase in plan.phases if phase.name == case.phase)
    built = RankReport(2, 2, memory={"weights": 1}, groups=30, groups_asked_here=2)
    stepped = SteppedRank(case, built, phase.ranks[2], 10**9, 0, 0)
    found = Rehearsal(
        "tiny", 4, cluster, "the CPU host", plan, (stepped,),
        (SteppedPipeline(case, report),), (),
    )  # fmt: skip
    share = report.messages.waiting[2] / report.messages.makespan
    assert 0 < share < 1
    assert grids.stages(found).rows[0][-1] == f"{100 * share:.1f}"
    assert mapping(found)["ranks"][0]["waiting"] == share
    busiest = max(phase.ranks, key=lambda rank: rank.busy_seconds)
    assert of_all(found)[0] == (
        "A rank is in up to 30 process groups, and takes part in up to 2 makings of groups beside "
        "Megatron's own (as many as those are bearable)."
    )
    assert of_all(found)[1:] == pipelines(found)
    assert pipelines(found)[0] == (
        f"{case.schedule}: pipeline rank {busiest.pipeline_rank} is the slowest, busy for "
        f"{figure_text(busiest.busy_seconds)} s."
    )
    assert in_the_end(found) == "It would run."
    fault, killed = Finding("it hangs"), Finding("rank 2 was ended by SIGKILL", of_run=False)
    ended = dataclasses.replace(found, findings=(killed,))
    assert in_the_end(ended) == "It was not rehearsed to its end."
    assert in_the_end(dataclasses.replace(ended, findings=(fault, killed))) == "It would not run."
    alone = dataclasses.replace(found, pipelines=())
    assert "waiting" not in grids.stages(alone).header[-1]


@pytest.mark.parametrize(
    ("cluster", "refused"), [("h800", "finds none that fits into the 85.0 GB"), ("h200", None)]
)
def test_a_layout_is_balanced_for_the_cluster_that_was_asked_for(cluster, refused, tmp_path):
    """Not for the recipe's own, whose devices are too small for so few of them."""
    few = ("parallel.processes=256", "parallel.expert=16", "pipeline.layout=balanced")
    report = answered(Request("pretrain/deepseek-v3", few, cluster, 0, 32, "messages"), tmp_path)
    if refused is None:
        assert report.findings == ()
        assert report.messages is not None
    else:
        (finding,) = report.findings
        assert refused in finding.sentence


@pytest.mark.parametrize(
    ("recipe", "schedule", "within_one_percent"),
    [
        ("pretrain/deepseek-v3", "1f1b_v", True),
        ("pretrain/deepseek-v3", "dualpipe_v", False),  # the head's rank waits in each micro-batch
        ("extend/deepseek-v3-32k", "dualpipe_v", True),
        ("extend/deepseek-v3-128k", "1f1b", True),
        ("sft/deepseek-v3", "dualpipe_v", True),
    ],
)
def test_the_slowest_rank_waits_for_no_more_than_two_messages_of_a_micro_batch(
    recipe: str, schedule: str, within_one_percent: bool
) -> None:
    """With the stages and the messages of the shipped recipes, as planned."""
    cluster = load_cluster("h800")
    loaded = load_resolved(recipe, (), cluster.machine)
    steps = RecipeSteps(loaded, Setting.of(loaded, cluster, cluster.machine), cluster)
    case = next(case for case in step_cases(loaded) if case.schedule == schedule)
    # What a longer one waits more is as much for every further micro-batch.
    micro_batches = min(case.micro_batches, 72)
    made = steps.schedule(micro_batches)
    ideal = simulate(made, steps.costs).makespan
    longer = simulate(made, steps.costs, "nccl").makespan - ideal
    assert 0 < longer < 2 * micro_batches * steps.costs.occupancy
    assert (longer < 0.01 * ideal) is within_one_percent
    timeless = dataclasses.replace(steps.costs, occupancy=0.0, latency=0.0)
    alone = simulate(made, timeless).makespan
    assert simulate(made, timeless, "nccl").makespan == pytest.approx(alone)
