"""What a run is refused with that has checkpoints, and does not begin anew."""

import os

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.training.changed_settings import refuse_other_settings


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a pretraining has left its run, as runs/mine."""
    checkpoints = tmp_path / "runs" / "mine" / "checkpoints"
    checkpoints.mkdir(parents=True)
    pretraining = load_recipe("pretrain/tiny", ["directory=runs/mine"])
    (checkpoints / "recipe.yaml").write_text(pretraining.to_yaml())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("stage", ["sft/tiny", "extend/tiny-1k"])
@pytest.mark.parametrize("begins_with", ["runs/mine", "{}/runs/mine", "runs/mine/checkpoints"])
def test_a_stage_in_the_folder_of_its_own_parent_is_told_to_take_another(
    folder, stage, begins_with
):
    begins_with = begins_with.format(folder)
    recipe = load_recipe(stage, ["directory=runs/mine", f"from={begins_with}"])
    with pytest.raises(UserError) as refused:
        refuse_other_settings(recipe)
    assert str(refused.value) == (
        f"from: {begins_with} is in runs/mine, where this run would be written too: choose another "
        f"folder for it with directory=PATH."
    )


def test_what_was_imported_into_the_runs_own_folder_may_be_what_it_began_with(folder):
    mine = ["directory=runs/mine", "from=runs/mine/checkpoints"]
    recipe = load_recipe("sft/tiny", mine)
    (recipe.checkpoint_folder / "recipe.yaml").write_text(recipe.to_yaml())
    refuse_other_settings(load_recipe("sft/tiny", [*mine, f"from={os.path.abspath(mine[1][5:])}"]))


def test_a_folder_of_another_run_is_no_parents(folder):
    recipe = load_recipe("sft/tiny", ["directory=runs/mine", "from=runs/other"])
    with pytest.raises(UserError, match=r"was written with data\.packing: stream"):
        refuse_other_settings(recipe)
