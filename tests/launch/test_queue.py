"""Slurm's answers, as Slurm 22.05 gave them, and where there is no Slurm."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.queue import cancel, queued, read_jobs, submit

LISTED = """\
1_1|PENDING|Resources|0|1:00:00||
1_0|RUNNING|None|2|59:58|n[1-2]|
"""


def test_jobs_are_read_from_squeues_lines():
    jobs = read_jobs(LISTED)
    assert str(jobs["1_1"]) == "PENDING (Resources)"
    assert jobs["1_1"].waits
    running = jobs["1_0"]
    assert (str(running), running.restarts) == ("RUNNING", 2)
    assert (running.time_left, running.nodes) == ("59:58", "n[1-2]")
    assert not running.waits


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A function that puts a command of Slurm's on the path, alone there."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name: str, body: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)

    return put


def test_without_slurm_no_job_is_known_and_none_can_be_submitted(commands):
    assert queued(["1"]) == {}
    for ask in (lambda: submit("x"), lambda: cancel("1")):
        with pytest.raises(UserError, match=r"there is no Slurm here.* not on the PATH"):
            ask()


def test_a_job_that_has_ended_is_none(commands):
    commands("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert queued(["99"]) == {}


def test_so_is_one_that_slurm_remembers_and_one_that_goes_back_into_the_queue_is_not(commands):
    """`TIMEOUT` and `REQUEUED` are among the states that squeue leaves out unless it is asked."""
    commands(
        "squeue",
        '[ "$3" = --states=all ] || exit 0\necho "1|TIMEOUT|TimeLimit|0|0:00||"\n'
        'echo "2|REQUEUED|None|1|0:00||"\necho "3_0|CANCELLED|None|0|0:00||"',
    )
    assert {job: str(one) for job, one in queued(["1", "2", "3_0"]).items()} == {"2": "REQUEUED"}


def test_what_slurm_says_is_passed_on(commands):
    commands("squeue", "echo 'slurm_load_jobs error: Unable to contact controller.' >&2; exit 1")
    with pytest.raises(UserError, match=r"squeue says: .*Unable to contact controller.$"):
        queued(["1"])
    commands(
        "sbatch",
        "echo 'sbatch: error: invalid partition specified: nope' >&2\n"
        "echo 'sbatch: error: Batch job submission failed: Invalid partition name' >&2\nexit 1",
    )
    with pytest.raises(UserError, match=r"specified: nope; .*Invalid partition name: mend launch "):
        submit("x")
    commands("sbatch", "echo 'sbatch: error: resolve_ctls_from_dns_srv: failed' >&2; exit 1")
    with pytest.raises(UserError, match=r"failed: Slurm's controller is not reached .* login node"):
        submit("x")
    commands("scancel", "exit 3")
    with pytest.raises(UserError, match="does not cancel job 1: nothing, with exit code 3"):
        cancel("1")


def test_the_number_is_told_without_the_clusters_name(commands):
    commands("sbatch", "echo '12;east'")
    assert submit("x") == "12"


@pytest.mark.parametrize("said", ["", "queued", "12 east"])
def test_a_job_without_a_number_is_no_job(commands, said):
    commands("sbatch", f"echo '{said}'")
    with pytest.raises(UserError, match=r"does not say which job .* squeue --me shows"):
        submit("x")


def test_what_is_no_line_on_a_job_is_said():
    assert read_jobs("7|PENDING|None|N/A|N/A||\n")["7"].restarts == 0
    with pytest.raises(UserError, match="squeue answers with 'slurm is away'"):
        read_jobs("slurm is away\n")
