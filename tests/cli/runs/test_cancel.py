"""`dsv3 cancel` of runs, by their folder and by their job, and what it cannot end."""

import os

import pytest

from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch.job_record import (
    JobRecord,
    ask_to_stop,
    is_asked_to_stop,
    write_record,
)


def test_cancel_lets_a_running_job_save_and_takes_a_waiting_one_away(dsv3, run, slurm):
    write_record(run, JobRecord("7", "cpu", "none", 0.0))
    calls = slurm("7|RUNNING|None|0|1:00:00|n1|")
    assert "saves and ends" in dsv3("cancel", "runs/small").out
    assert calls.read_text() == "--signal=TERM 7\n"
    assert is_asked_to_stop(run)
    assert "KillWait" in dsv3("cancel", "runs/small", "--now").out
    slurm("7|PENDING|Priority|0|1:00:00||")
    assert "still waiting" in dsv3("cancel", "runs/small").out
    slurm("7|COMPLETING|None|1|1:00:00|n1|")
    assert "does not go back into the queue" in dsv3("cancel", "runs/small").out
    assert calls.read_text() == "--signal=TERM 7\n7\n7\n7\n"


def test_cancelling_a_sweep_ends_those_of_its_jobs_that_there_are(dsv3, run, slurm):
    for number in range(3):
        one = RunFolder(run.root.parent / "sweep" / f"seed-{number}")
        write_record(one, JobRecord(f"9_{number}", "cpu", "none", 0.0))
    sweep = one.root.parent / "launch" / "sweep.sbatch"
    sweep.parent.mkdir()
    sweep.touch()
    calls = slurm("9_0|RUNNING|None|0|1:00:00|n1|\n9_2|PENDING|Priority|0|1:00:00||")
    said = dsv3("cancel", "runs/sweep")
    assert [line.split()[1] for line in said.out.splitlines()] == ["9_0", "9_2"]
    assert calls.read_text() == "--signal=TERM 9_0\n9_2\n"
    slurm("")
    assert "job 9_0 of the run in runs/sweep/seed-0 has ended" in dsv3("cancel", "runs/sweep").err


def test_a_run_may_be_named_by_its_job(dsv3, run, slurm):
    write_record(run, JobRecord("7", "cpu", "none", 0.0))
    for number in range(2):
        one = RunFolder(run.root.parent / "sweep" / f"seed-{number}")
        write_record(one, JobRecord(f"9_{number}", "cpu", "none", 0.0))
    slurm("\n".join(f"{job}|RUNNING|None|0|1:00:00|n1|" for job in ("7", "9_0", "9_1")))
    assert dsv3("status", "7").out == dsv3("status", "runs/small").out
    assert [line.split()[0] for line in dsv3("status", "9").out.splitlines()[1:]] == [
        "runs/sweep/seed-0",
        "runs/sweep/seed-1",
    ]
    assert dsv3("cancel", "7").out.startswith("Job 7 finishes its step")
    slurm("7|RUNNING|None|0|1:00:00|n1|")
    assert "job 9_1 of the run in runs/sweep/seed-1 has ended" in dsv3("cancel", "9_1").err
    (run.root.parent.parent / "7").mkdir()
    assert "7 holds no run" in dsv3("status", "7").err  # a folder comes first


def test_cancelling_a_folder_of_runs_that_are_no_sweep_ends_none(dsv3, run, slurm):
    write_record(run, JobRecord("7", "cpu", "none", 0.0))
    write_record(RunFolder(run.root.parent / "other"), JobRecord("8", "cpu", "none", 0.0))
    calls = slurm("7|RUNNING|None|0|1:00:00|n1|\n8|PENDING|Priority|0|1:00:00||")
    said = dsv3("cancel", "runs")
    assert (said.code, said.out) == (2, "")
    assert "runs is no run and no sweep: name the run whose job is to end, one of" in said.err
    assert "(runs/other, runs/small)" in said.err
    assert not calls.exists()
    assert not is_asked_to_stop(run)
    slurm("")
    assert "no run in it has a job that waits or runs" in dsv3("cancel", "runs").err


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_cancel_that_slurm_refuses_leaves_the_run_wanted(dsv3, run, slurm, asked_before):
    write_record(run, JobRecord("7", "cpu", "none", 0.0))
    calls = slurm("7|RUNNING|None|0|1:00:00|n1|")
    if asked_before:
        ask_to_stop(run)
    (calls.parent / "scancel").write_text("#!/bin/sh\necho 'Access denied' >&2; exit 1\n")
    said = dsv3("cancel", "runs/small")
    assert (said.code, said.out) == (2, "")
    assert "Slurm does not cancel job 7: Access denied" in said.err
    assert is_asked_to_stop(run) == asked_before


def test_what_cannot_be_shown_or_cancelled_is_a_sentence(dsv3, run, slurm, tmp_path):
    for words, sentence in (
        (("status", "nowhere"), "nowhere does not exist: name a run's folder"),
        (("logs", tmp_path), "holds no run"),
        (("balance", "nowhere"), "nowhere does not exist: name a run's folder"),
        (("diff", "runs/small"), "Missing argument 'RECIPE_OR_RUN'"),
        (("status", "runs/mall"), "mall does not exist (nearest: 'runs/small'): name a run's fold"),
        (
            ("logs", "smal"),
            "smal does not exist (nearest: 'runs/small'): name a run's folder; dsv3",
        ),
        (("cancel", "runs/smol"), "runs/smol does not exist (nearest: 'runs/small'): name a run's"),
        (("diff", "runs/small", "runs/mall"), "of a run nor a recipe (nearest: 'runs/small'): dsv"),
        (("cancel", "12345"), "12345 is no folder of a run, and no run in runs/ was launched as j"),
        (("diff", "pretrain/tinny", "x"), "nor a recipe (nearest: 'pretrain/tiny'): dsv3 runs"),
        (("logs", "runs/small"), "nothing has been printed yet"),
        (("cancel", "runs/small"), "not launched as a job of Slurm: there is nothing to cancel."),
        (("logs", "small"), "small does not exist: name a run's folder, such as runs/small; dsv3"),
        (("logs", "runs/small/metrics.jsonl"), "is a file: name a run's folder, runs/small; dsv3"),
    ):
        said = dsv3(*words)
        assert (said.code, said.out) == (2, "")
        assert sentence in said.err
    with run.held():
        assert f"or kill -TERM {os.getpid()}, lets it save" in dsv3("cancel", "runs/small").err
    assert dsv3("status", "runs/small", "runs/small").out.count("stopped") == 1
    write_record(run, JobRecord("7", "cpu", "none", 0.0))
    slurm("")
    assert "job 7 of the run in" in dsv3("cancel", "runs/small").err
    assert not is_asked_to_stop(run)
