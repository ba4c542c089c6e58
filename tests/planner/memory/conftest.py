"""Runs of `tiny`, each trained once and measured for all who look at a part of it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import stages_of
from dsv3_plugin.recipe.load import load_recipe
from tests.gloo_ranks import run_ranks
from tests.measured_memory import measured
from tests.planner.memory.runs import RUNS, MeasuredRun


@pytest.fixture(scope="session", params=RUNS)
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
        "curves.batch_size=8",
        "parallel.expert=1",
        *overrides,
    ]
    loaded = load_recipe(recipe, overrides)
    stages = stages_of(loaded.model, loaded.stage_layout)
    placement = loaded.placement(loaded.pipeline.schedule)
    return MeasuredRun(
        setting=Setting.of(loaded, SimpleNamespace(gpus_per_node=8), Machine(0, False)),
        stages=tuple(
            tuple(stages[placement.model_stage(stage)] for stage in chunks)
            for chunks in placement.chunks
        ),
        ranks=run_ranks(world, measured, recipe, overrides, scratch=folder),
    )
