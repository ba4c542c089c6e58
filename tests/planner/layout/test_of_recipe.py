"""Layouts that shipped recipes write out: they are the planner's."""

import pytest

from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.planner.resolve import load_resolved
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.load import load_recipe, shipped_folder
from dsv3_plugin.recipe.sections import BALANCED
from dsv3_plugin.recipe.stage_layout import expand
from tests.planner.settings import GPUS

WRITTEN = sorted(
    path.relative_to(shipped_folder()).with_suffix("").as_posix()
    for path in shipped_folder().rglob("*.yaml")
    if yaml_text.parse(path.read_text(encoding="utf-8"), path.name)
    .get("pipeline", {})
    .get("layout", BALANCED)
    not in (None, BALANCED)
)
"""Those that say one themselves; what builds on a recipe keeps its layout."""


def test_the_full_recipe_writes_its_layout():
    assert "pretrain/deepseek-v3" in WRITTEN


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_what_balances_the_ranks(name):
    written = load_recipe(name, machine=GPUS).pipeline.layout
    found = load_resolved(name, [f"pipeline.layout={BALANCED}"], GPUS).pipeline.layout
    assert expand(written) == expand(found)


def test_no_layout_of_the_full_recipe_gives_its_busiest_rank_less():
    recipe = load_recipe("pretrain/deepseek-v3", machine=GPUS)
    plan = make_plan(recipe, load_cluster(recipe.cluster_on(GPUS)), GPUS)
    for phase in plan.phases:
        work = [rank.work for rank in phase.ranks]
        experts = [sum(stage.moe for stage in rank.stages) for rank in phase.ranks]
        # However 58 are laid on 16 ranks, some rank has four, and is as busy as this one.
        assert max(work) == pytest.approx(work[experts.index(4)])
        assert max(work) < 1.05
