"""What a run leaves behind is found, and a run that was refused leaves nothing."""

import os
import stat
from pathlib import Path

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import TRACKER, RunFolder


def test_everything_lies_in_the_folder_but_checkpoints_kept_elsewhere(tmp_path):
    run = RunFolder(tmp_path)
    assert run.checkpoints == tmp_path / "checkpoints"
    assert RunFolder(tmp_path, tmp_path / "big").checkpoints == tmp_path / "big"
    run.write_recipe("name: tiny\n")
    assert (tmp_path / "recipe.yaml").read_text() == "name: tiny\n"
    run.metrics.append({"iteration": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 1}\n'


def test_every_recipe_of_a_run_is_kept(tmp_path):
    run = RunFolder(tmp_path)
    for step, recipe in [(0, "a: 1"), (4, "a: 1"), (8, "a: 2"), (8, "a: 3"), (12, "a: 1")]:
        run.write_recipe(recipe, step)
    kept = {path.name: path.read_text() for path in run.recipes.iterdir()}
    assert kept == {
        "1_from_step_0.yaml": "a: 1",
        "2_from_step_8.yaml": "a: 2",
        "3_from_step_8.yaml": "a: 3",
        "4_from_step_12.yaml": "a: 1",
    }
    assert run.recipe.read_text() == "a: 1"


def test_the_recipe_of_a_run_of_0_1_is_kept(tmp_path):
    run = RunFolder(tmp_path)
    run.recipe.write_text("a: 1")
    run.write_recipe("a: 1", 4)
    run.write_recipe("a: 2", 8)
    assert sorted(path.name for path in run.recipes.iterdir()) == [
        "1_before_step_4.yaml",
        "2_from_step_8.yaml",
    ]


@pytest.mark.parametrize(
    ("written", "steps"), [(None, 0), ("", 0), ("release", 0), ("12", 12), ("12\n", 12)]
)
def test_steps_saved_are_what_the_tracker_says(tmp_path, written, steps):
    run = RunFolder(tmp_path)
    if written is not None:
        run.checkpoints.mkdir()
        (run.checkpoints / TRACKER).write_text(written)
    assert run.steps_saved() == steps


def test_each_folder_is_held_and_named_with_its_key(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    mine = RunFolder(tmp_path / "mine", tmp_path / "shared")
    with mine.held():
        for other, named, key in (
            (mine, "mine", "directory"),
            (RunFolder(tmp_path / "other", tmp_path / "shared"), "shared", "checkpoint.directory"),
            (RunFolder(tmp_path / "x", tmp_path / "mine"), "mine", "checkpoint.directory"),
        ):
            with pytest.raises(UserError) as refusal, other.held():
                pass
            assert str(refusal.value) == (
                f"another run is using {tmp_path / named}: wait for it, or choose another folder "
                f"with {key}=PATH."
            )
            assert refusal.value.holder == f"process {os.getpid()} on {os.uname().nodename}"
    assert [*tmp_path.iterdir()] == []


def test_checkpoints_may_lie_in_the_folder_itself(tmp_path):
    with RunFolder(tmp_path, tmp_path).held():
        pass


def test_a_run_that_was_refused_leaves_nothing_where_there_was_nothing(tmp_path):
    run = RunFolder(tmp_path / "runs" / "new")

    def refused() -> None:
        with run.held():
            run.logs.mkdir()
            (run.logs / "rank0.log").touch()
            raise UserError("the data are wrong.")

    with pytest.raises(UserError, match="wrong"):
        refused()
    assert [*tmp_path.iterdir()] == []


def test_a_run_that_had_begun_keeps_its_logs(tmp_path):
    run = RunFolder(tmp_path)

    def refused() -> None:
        with run.held():
            run.logs.mkdir()
            run.write_recipe("")
            raise UserError("the disk is full.")

    with pytest.raises(UserError, match="full"):
        refused()
    assert run.logs.exists()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as refusal, RunFolder(tmp_path / "file" / "run").held():
        pass
    assert str(refusal.value) == (
        f"the run folder {tmp_path}/file/run cannot be written (Not a directory): choose another "
        "with directory=PATH."
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="Permission denied"), RunFolder(tmp_path).held():
        pass


def test_why_no_folder_can_be_made_there_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    for place, why in (
        (tmp_path / "file", "there is a file of that name"),
        (Path("/proc/run"), "nothing can be made there"),
    ):
        with pytest.raises(UserError, match=why), RunFolder(place).held():
            pass
