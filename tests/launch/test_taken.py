"""A run that is a job already is not trained beside it, as far as Slurm says."""

import contextlib

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import rank, taken
from dsv3_plugin.launch.job_record import JobRecord, write_record
from tests.launch.jobs import write_slurm

IS_A_JOB = "is job 12 already, PENDING .Priority.: dsv3 cancel .* ends it; another run needs"


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunFolder:
    run = RunFolder(tmp_path / "runs" / "tiny")
    write_record(run, JobRecord("12", "cpu", "none", 0.0))
    write_slurm(tmp_path, queue="12|PENDING|Priority|0|1:00:00||")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(taken, "_PATIENCE_S", 300.0)  # on a machine with much to do
    return run


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_the_folder_of_a_job_is_not_trained_in(run, dsv3, words):
    said = dsv3("train", "pretrain/tiny", f"directory={run.root}", *words)
    assert (said.code, said.out.count("It would")) == (2, 0)
    assert f"the run in {run.root} is job 12 already, PENDING (Priority): " in said.err
    assert not run.recipe.exists()


def test_nor_by_ranks_that_are_none_of_that_job(run, monkeypatch):
    monkeypatch.delenv("DSV3_LAUNCHED", raising=False)
    with contextlib.ExitStack() as stack:
        with pytest.raises(UserError, match=IS_A_JOB):
            rank._held(run, stack)
        monkeypatch.setenv("DSV3_LAUNCHED", "1")
        rank._held(run, stack)
        assert run.is_held_here


@pytest.mark.parametrize("body", ["echo away >&2; exit 1", "exec sleep 20", "echo nonsense"])
def test_where_slurm_does_not_answer_the_run_begins(run, tmp_path, monkeypatch, body):
    monkeypatch.setattr(taken, "_PATIENCE_S", 0.2)
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{body}\n")
    taken.refuse_seen_job(run)
    if "sleep" not in body:
        with pytest.raises(UserError, match="squeue"):
            taken.refuse_job(run)
