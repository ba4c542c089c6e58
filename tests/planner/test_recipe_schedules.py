"""The schedules of a recipe: by name, from a file, of a growing batch, and searched for once."""

from types import SimpleNamespace

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner import found_schedules
from dsv3_plugin.planner.recipe_schedules import schedules_of, schedules_on
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.schedules.actions import csv_text
from dsv3_plugin.schedules.placement import placement_of
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.zbv import zbv
from tests.recipe.piped import PIPED

LAPTOP = Machine(gpus=0, transformer_engine=False)


@pytest.mark.parametrize(
    ("name", "stages"), [("dualpipe", 2), ("dualpipe_v", 4), ("1f1b", 2), ("zbv", 4)]
)
def test_every_schedule_comes_back_from_its_file(name, stages, tmp_path):
    """DualPipe's two pipelines hold one model, so two devices are two stages."""
    path = tmp_path / "mine.csv"
    path.write_text(csv_text(SCHEDULES[name].schedule(2, 4).rows))
    overrides = [*PIPED, "curves.batch_size=8"]
    named = load_recipe("pretrain/tiny", [*overrides, f"pipeline.schedule={name}"])
    read = load_recipe("pretrain/tiny", [*overrides, f"pipeline.schedule={path}"])
    assert read.pipeline_stages == named.pipeline_stages == stages
    assert schedules_of(read)(4).rows == schedules_of(named)(4).rows
    assert read.placement(str(path)) == named.placement(name)


@pytest.mark.parametrize(
    ("schedule", "ramp", "way_out"),
    [
        ("dualpipe_v", "1f1b", "name 1f1b_v or zbv or search"),
        ("dualpipe", "zbv", "raise the smallest batch instead"),
        ("dualpipe", "1f1b", "raise the smallest batch instead"),
        ("dualpipe_v", "zbv", None),
        ("dualpipe_v", "search", None),
        ("zb1p", "1f1b", None),
    ],
)
def test_a_ramp_schedule_places_stages_alike(schedule, ramp, way_out, tmp_path):
    overrides = [*PIPED, f"pipeline.schedule={schedule}", f"pipeline.ramp_schedule={ramp}"]
    overrides.append(f"directory={tmp_path}")
    if way_out is None:
        recipe = load_recipe("pretrain/tiny", overrides)
        few = schedules_on(recipe, LAPTOP)(1)
        assert placement_of(few) == recipe.placement(schedule)
        return
    with pytest.raises(UserError, match="places the model's stages otherwise") as caught:
        load_recipe("pretrain/tiny", overrides)
    assert str(caught.value).endswith(f"{way_out}.")


def test_a_search_is_made_once_and_kept_with_the_run(monkeypatch, tmp_path):
    asked = []

    def search_nothing(pp, micro_batches, costs, limit, *, seed, effort):
        asked.append((micro_batches, effort))
        assert sum(costs.forward) == pytest.approx(pp)
        # Of the laptop's memory these activations are next to nothing.
        assert limit == 1.0
        assert 0 < sum(costs.activation) < 0.05
        return SimpleNamespace(schedule=zbv(pp, micro_batches))

    monkeypatch.setattr(found_schedules, "search", search_nothing)
    overrides = [*PIPED, "pipeline.schedule=search", f"directory={tmp_path / 'run'}"]
    recipe = load_recipe("pretrain/tiny", overrides)
    schedules = schedules_on(recipe, LAPTOP)
    assert schedules(3) is schedules(3)
    assert schedules(600) is not schedules(3)
    assert schedules_on(recipe, LAPTOP)(3).rows == zbv(2, 3).rows
    assert asked == [(3, 6 / 1000), (600, 1.0)]
    assert len([*recipe.run_folder.schedules.iterdir()]) == 2
    longer = load_recipe("pretrain/tiny", [*overrides, "data.seq_length=512"])
    schedules_on(longer, LAPTOP)(3)
    assert asked[2:] == [(3, 6 / 1000)]
