"""A run's folder and that of its checkpoints know each other, wherever either is."""

import pytest

from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.recipe.kept import run_in, run_of, section


@pytest.fixture
def places(tmp_path):
    """The folders of a run and of its checkpoints, with the recipe in both."""

    def make(run="run", checkpoints="elsewhere", says=None):
        folders = tmp_path / run, tmp_path / checkpoints
        says = f"{{directory: {tmp_path / (says or checkpoints)}}}"
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            text = f"directory: {tmp_path / 'run'}\ncheckpoint: {says}\n"
            (folder / "recipe.yaml").write_text(text)
        return folders

    return make


def test_a_recipe_says_where_checkpoints_are(places):
    run, checkpoints = places()
    assert run_in(run) == RunFolder(run, checkpoints)
    assert run_of(checkpoints) == RunFolder(run, checkpoints)


def test_checkpoints_in_a_runs_folder_are_its_own(tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for folder in (checkpoints, checkpoints.parent):
        # Where it was when it was trained; it has been moved since.
        (folder / "recipe.yaml").write_text("directory: /before\ncheckpoint: {directory: null}\n")
    assert run_of(checkpoints) == run_in(checkpoints.parent) == RunFolder(checkpoints.parent)


def test_checkpoints_in_the_runs_folder_itself(places):
    run, checkpoints = places(checkpoints="run")
    assert run_of(checkpoints) == RunFolder(run, run)


def test_a_run_that_keeps_its_checkpoints_in_another_place_is_not_theirs(places):
    _, checkpoints = places(says="third")
    assert run_of(checkpoints) is None


def test_checkpoints_that_no_run_is_of(tmp_path):
    assert run_of(tmp_path / "imported") is None


@pytest.mark.parametrize("recipe", ["", "data: 3", "data: {}", "model: tiny"])
def test_a_section_that_is_not_there_is_empty(tmp_path, recipe):
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert section(tmp_path / "recipe.yaml", "data") == {}
    assert section(tmp_path / "none.yaml", "data") == {}
