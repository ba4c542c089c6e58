"""`dsv3 logs --follow` of runs."""

import os

import pytest

from dsv3_plugin.launch import status as run_status
from dsv3_plugin.launch.job_record import (
    JobRecord,
    write_record,
)


def test_following_ends_with_the_job_and_waits_for_one_that_has_not_begun(dsv3, run, slurm):
    output = run.launch / "job-7.out"
    write_record(run, JobRecord("7", "cpu", str(output), 0.0))
    calls = slurm("7|PENDING|Priority|0|1:00:00||")
    # It begins and ends while it is followed: at the second question it is gone.
    (calls.parent / "squeue").write_text(
        f"#!/bin/sh\n[ -e {output} ] && exit 0\necho begun > {output}\n"
        "echo '7|PENDING|Priority|0|1:00:00||'\n"
    )
    said = dsv3("logs", "runs/small", "-f")
    assert (said.code, said.out) == (0, "job 7: begun\n"), said.err
    assert dsv3("logs", "runs/small", "-f").out.splitlines()[-1] == "begun"


@pytest.mark.parametrize("left", ["signed", "done"])
def test_following_a_run_without_a_job_ends_where_nothing_goes_on(
    dsv3, run, no_slurm, left, monkeypatch
):
    """Nobody was seen to hold it: its last process was of this machine, or it is done."""
    run.logs.mkdir()
    (run.logs / "rank0.log").write_text("all\n")
    if left == "signed":
        (run.root / ".lock").write_text(f"process {2**22 + 1} on {os.uname().nodename}")
    else:
        (run.root / ".lock").write_text("process 1 on elsewhere")
        monkeypatch.setattr(run_status, "is_done", lambda recipe: recipe.folder == run.root)
    said = dsv3("logs", run.root, "-f")
    assert (said.code, said.out.splitlines()[-1]) == (0, "all")
    assert said.err == (
        f"The run in {run.root} has ended (stopped): nothing more will be printed.\n"
    )
