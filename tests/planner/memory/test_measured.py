"""The memory of real runs of `tiny`: states to the byte, activations within 3 %.

Each run trains one step on processes of its own and is measured for all tests here.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.memory.activations import stage_bytes
from dsv3_plugin.planner.memory.peak import fullest, rank_orders
from dsv3_plugin.planner.memory.states import gradients, optimizer, weights
from dsv3_plugin.planner.recipe_schedules import schedules_of
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage, stages_of
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.rehearsal.report import Request
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.placement import Placement
from tests.gloo_ranks import run_ranks
from tests.measured_memory import measured
from tests.rehearsal.forked_child import reports

RUNS: dict[str, tuple[int, list[str]]] = {
    "1f1b": (2, ["parallel.pipeline=2"]),
    "zbv": (
        2,
        ["parallel.pipeline=2", "pipeline.schedule=zbv", "recompute=[norms, mla_up_proj]"],
    ),
    "dualpipe_v": (
        4,
        [
            "parallel.pipeline=2",
            "pipeline.schedule=dualpipe_v",
            "parallel.expert=2",
            "parallel.zero1=true",
            "recompute=[norms, core_attn, shared_experts]",
        ],
    ),
    "interleaved": (
        2,
        [
            "parallel.pipeline=2",
            "pipeline.schedule=interleaved",
            "pipeline.virtual_stages=2",
            "recompute=[core_attn, mlp, shared_experts]",
        ],
    ),
    "dualpipe": (
        4,
        [
            "parallel.pipeline=2",
            "pipeline.schedule=dualpipe",
            "parallel.expert=2",
            "dispatch={kind: two_hop, ranks_per_node: 1}",
        ],
    ),
    "context": (
        4,
        [
            "parallel.pipeline=2",
            "parallel.context=2",
            "pipeline.schedule=zbv",
            "parallel.expert=2",
            "recompute=[norms]",
        ],
    ),
    "no pipeline": (
        2,
        ["parallel.expert=2", "parallel.zero1=true", "recompute=[moe, mla_up_proj]"],
    ),
}
"""Name → ranks, and what is said of the run beyond the small recipe's own."""


@dataclass(frozen=True)
class MeasuredRun:
    """What was asked, and what each rank held.

    Attributes:
        name, recipe, overrides: of the run.
        schedule, placement: of the pipeline.
        stages: the chunks of each pipeline rank.
        ranks: by rank of the world, bytes by part.
    """

    name: str
    recipe: Path
    overrides: list[str]
    setting: Setting
    schedule: Schedule
    placement: Placement
    stages: tuple[tuple[Stage, ...], ...]
    ranks: list[dict[str, int]]


@pytest.fixture(scope="module", params=RUNS)
def measured_run(
    request: pytest.FixtureRequest, recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> MeasuredRun:
    world, overrides = RUNS[request.param]
    folder = tmp_path_factory.mktemp("measured")
    overrides = [
        "model=tiny",
        f"directory={folder}/run",
        f"data.path={recipe.parent}/data",
        f"parallel.processes={world}",
        "training.micro_batch_size=1",
        f"curves.batch_size={2 * world}",
        "parallel.expert=1",
        *overrides,
    ]
    loaded = load_recipe(recipe, overrides)
    setting = Setting.of(loaded, load_cluster("h800"), Machine(0, False))
    placement = loaded.placement(loaded.pipeline.schedule)
    along_the_model = stages_of(loaded.model, loaded.stage_layout)
    return MeasuredRun(
        name=request.param,
        recipe=recipe,
        overrides=overrides,
        setting=setting,
        schedule=schedules_of(loaded)(2 * world // setting.data),
        placement=placement,
        stages=tuple(
            tuple(along_the_model[placement.model_stage(stage)] for stage in chunks)
            for chunks in placement.chunks
        ),
        ranks=run_ranks(world, measured, recipe, overrides, scratch=folder),
    )


def test_states_are_those_of_a_run_to_the_byte(measured_run: MeasuredRun) -> None:
    setting = measured_run.setting
    for rank, found in enumerate(measured_run.ranks):
        pipeline_rank, replica = divmod(rank, setting.stage_ranks)
        stages = measured_run.stages[pipeline_rank]
        assert found["weights"] == weights(setting, stages)
        assert found["gradients"] == gradients(setting, stages)
        # Expert-parallel ranks lie next to each other.
        owned = optimizer(setting, stages, replica, replica // setting.expert)
        assert found["optimizer"] == owned


def test_activations_are_those_of_a_run_within_three_percent(measured_run: MeasuredRun) -> None:
    setting = measured_run.setting
    orders = rank_orders(measured_run.schedule, measured_run.placement)
    for rank, found in enumerate(measured_run.ranks):
        pipeline_rank = rank // setting.stage_ranks
        chunks = [stage_bytes(setting, stage) for stage in measured_run.stages[pipeline_rank]]
        kept = fullest(orders[pipeline_rank], chunks, between=True)
        assert kept.total == pytest.approx(found["kept"], rel=0.03)
        # What a layer works with for a moment is an estimate, though of the same kind.
        most = fullest(orders[pipeline_rank], chunks)
        assert most.total == pytest.approx(found["most"], rel=0.05)


def test_a_rehearsal_holds_what_a_run_holds_within_three_percent(
    measured_run: MeasuredRun,
) -> None:
    setting = measured_run.setting
    if measured_run.name not in (
        "dualpipe",
        "dualpipe_v",
        "no pipeline",
        "context",
    ):  # two of a kind suffice
        pytest.skip("a rehearsal takes its time, and some of each kind suffice")
    world, words = len(measured_run.ranks), tuple(measured_run.overrides)
    micro_batches = 2 * world // setting.data
    first_of_each_place = range(0, world, world // setting.pipeline)
    rehearsed = reports(
        [
            Request(str(measured_run.recipe), words, "cpu", rank, micro_batches)
            for rank in first_of_each_place
        ]
    )
    for rank, report in zip(first_of_each_place, rehearsed, strict=True):
        found = measured_run.ranks[rank]
        states = {part: found[part] for part in ("weights", "gradients", "optimizer")}
        assert {part: report.states[part] for part in states} == states
        # The measurement leaves messages between stages out.
        held = sum(states.values()) + found["most"]
        assert sum(report.memory.values()) == pytest.approx(held, rel=0.03)
