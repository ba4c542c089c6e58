"""`dsv3 launch`: what is submitted, what it waits for, and what is there already."""

import errno
from pathlib import Path

from dsv3_plugin.files import locks
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import after, submit
from dsv3_plugin.launch.job_record import record_of
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.recipe.load import load_recipe
from tests.launch.jobs import LAUNCH


def test_a_job_is_submitted_with_the_recipe_as_it_is_now(dsv3, sbatch, tmp_path):
    before = load_cluster("two.yaml")
    said = dsv3(*LAUNCH, "training.steps=12")
    assert said.out == "Job 12: tiny in runs/tiny; dsv3 status runs/tiny shows it.\n"
    (tmp_path / "two.yaml").unlink()  # and so is the cluster's file
    kept = load_recipe(Path("runs/tiny/launch/recipe.yaml"))
    assert kept.training.steps == 12
    assert kept.cluster == str(tmp_path / "runs/tiny/launch/cluster.yaml")
    assert load_cluster(kept.cluster) == before
    assert "#SBATCH" in Path("runs/tiny/launch/job.sbatch").read_text()
    said = dsv3("status", "runs/tiny")
    assert "12" in said.out
    assert "0/12" in said.out
    assert record_of(RunFolder(Path("runs/tiny"))).command == (
        "dsv3 launch pretrain/tiny --cluster two.yaml training.steps=12"
    )


def test_a_job_that_cannot_be_written_down_is_cancelled_again(dsv3, sbatch, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(submit, "write_record", full)
    sbatch(cancel=f'echo "$@" > {tmp_path}/cancelled')
    said = dsv3(*LAUNCH)
    assert said.code == 2
    assert (
        "(No space left on device): job 12, which Slurm had taken, is cancelled again" in said.err
    )
    assert (tmp_path / "cancelled").read_text() == "12\n"
    sbatch(cancel="echo away >&2; exit 1")
    assert (
        "job 12 is in the queue still, end it with scancel 12 (Slurm does not" in dsv3(*LAUNCH).err
    )


def test_two_launches_of_one_run_do_not_meet(dsv3, sbatch):
    with locks.take(Path("runs/tiny/launch"), ".lock"):
        assert "another dsv3 launch is submitting the run in runs/tiny" in dsv3(*LAUNCH).err
    sweep = (*LAUNCH, "--array", "training.seed=1,2", "directory=runs/sweep")
    with locks.take(Path("runs/sweep/launch"), ".lock"):
        assert "another dsv3 launch is submitting the run in runs/sweep" in dsv3(*sweep).err
    assert not Path("runs").exists()


def test_what_slurm_takes_for_a_pattern_in_a_folders_name_is_none(dsv3, sbatch):
    assert dsv3(*LAUNCH, "directory=runs/50%j").code == 0
    script = Path("runs/50%j/launch/job.sbatch").read_text()
    assert "/runs/50%%j/launch/job-%j.out" in script
    output = record_of(RunFolder(Path("runs/50%j"))).output_file
    assert output == Path.cwd() / "runs/50%j/launch/job-12.out"


def test_a_job_waits_for_another_or_for_that_of_a_run(dsv3, sbatch):
    unknown = dsv3(*LAUNCH, "--after", 7, "--dry-run")
    assert (unknown.code, unknown.out) == (2, "")
    assert "--after 7: Slurm knows no job of that number" in unknown.err
    sbatch(queue="7|COMPLETED|None|0|1:00:00||")
    assert "afterok:7\n" in dsv3(*LAUNCH, "--after", 7, "--dry-run").out
    sbatch()
    dsv3(*LAUNCH)
    child = ("launch", "extend/tiny-1k", "--cluster", "two.yaml", "--after", "runs/tiny")
    sbatch(queue="12|PENDING|Priority|0|1:00:00||")
    assert "afterok:12\n" in dsv3(*child, "--dry-run").out
    sbatch()  # it has ended before the run was at its end
    refused = dsv3(*child, "--dry-run")
    assert (refused.code, refused.out) == (2, "")
    assert "job 12 of that run has ended, and the run is not at its end" in refused.err


def test_a_run_that_is_done_is_not_waited_for(dsv3, sbatch, monkeypatch):
    dsv3(*LAUNCH)
    monkeypatch.setattr(after, "is_done", lambda recipe: recipe.folder == Path("runs/tiny"))
    child = ("launch", "extend/tiny-1k", "--cluster", "two.yaml", "--after", "runs/tiny")
    said = dsv3(*child, "--dry-run")
    assert said.code == 0, said.err
    assert "afterok" not in said.out


def test_a_run_that_is_done_is_not_queued_again(dsv3, sbatch, tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "is_done", lambda recipe: recipe.training.seed != 3)
    monkeypatch.setattr(submit, "nothing_to_do", lambda recipe: f"Done is {recipe.folder}.")
    said = dsv3(*LAUNCH)
    assert (said.code, said.out, said.err) == (0, "", "Done is runs/tiny.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["two.yaml"]
    swept = dsv3(*LAUNCH, "--array", "training.seed=1,3")  # one of them is left
    assert "Done is runs/tiny/seed-1." in swept.err
    assert "Job 12_1: tiny in runs/tiny/seed-3" in swept.out
    assert dsv3(*LAUNCH, "--dry-run").out.startswith("#!/bin/bash")


def test_a_run_that_has_a_job_or_a_process_is_left_alone(dsv3, sbatch):
    dsv3(*LAUNCH)
    before = Path("runs/tiny/launch/recipe.yaml").read_bytes()
    sbatch("exit 9", queue="12|RUNNING|None|0|1:00:00|n1|")
    with locks.take(Path("runs/tiny"), ".lock"):  # as its rank 0 does, if it is on this machine
        said = dsv3(*LAUNCH, "training.steps=5")
    assert said.code == 2
    assert "the run in runs/tiny is job 12 already, RUNNING" in said.err
    assert Path("runs/tiny/launch/recipe.yaml").read_bytes() == before
    sbatch("exit 9")
    with locks.take(Path("runs/tiny"), ".lock"):
        said = dsv3(*LAUNCH)
    assert "another run is using runs/tiny" in said.err
