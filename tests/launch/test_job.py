"""What a job's script asks on its way, as it asks it: by arguments and exit codes."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsv3_plugin.errors import Passing, UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import job, turn
from dsv3_plugin.launch.job_record import JobRecord, ask_to_stop, write_record
from dsv3_plugin.launch.starts import NOT_STARTED, TRY_AGAIN, starts_of
from dsv3_plugin.recipe.load import load_recipe
from tests.launch.test_node_verdicts import came, looked_at


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunFolder:
    """A run of twelve steps that was launched as job 7."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    run = RunFolder(tmp_path)
    run.launch.mkdir()
    recipe = load_recipe("pretrain/tiny", [f"directory={tmp_path}", "training.steps=12"])
    (run.launch / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    write_record(run, JobRecord("7", "cpu", str(run.launch / "job-7.out"), 0.0))
    return run


@pytest.fixture
def ask(run, monkeypatch, capsys):
    """A function that asks as the script does; what is said on both streams."""

    def call(*words: object):
        what, *rest = map(str, words)
        monkeypatch.setattr(sys, "argv", ["job", what, str(run.root), *rest])
        job.main()
        return capsys.readouterr()

    return call


def save(run: RunFolder, step: int) -> None:
    run.checkpoints.mkdir(exist_ok=True)
    (run.checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))


def take_step(run: RunFolder, step: int) -> None:
    run.metrics.append({"iteration": step, "time": time.time(), "tokens": step, "loss": 5.0})


def test_a_job_is_numbered_as_squeue_writes_it():
    assert job.job_number({"SLURM_JOB_ID": "7"}) == "7"
    task = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "1"}
    assert job.job_number(task) == "8_1"
    with pytest.raises(UserError, match="SLURM_JOB_ID is not set"):
        job.job_number({})


def test_starts_and_ends_are_remembered_and_the_next_action_is_one_word(run, ask):
    assert "first start, nothing is saved yet" in ask("begin", "--restarts", 1).err
    save(run, 4)
    take_step(run, 5)
    answer = ask("end", 1)
    assert answer.out == "again\n"
    assert "ended with exit code 1; the run goes on from the checkpoint of step 4" in answer.err
    assert "restart 1, step 4 is saved" in ask("begin", "--restarts", 1).err
    save(run, 8)
    assert ask("end", 0, "--time-is-up").out == "requeue\n"
    assert [start.ended for start in starts_of(run, "7")] == ["failed", "time limit"]


def test_what_a_person_has_to_mend_is_not_tried_again(run, ask):
    ask("begin", "--restarts", 5)
    answer = ask("end", 2)
    assert answer.out == "stop\n"
    assert "The run did not begin" in answer.err


def test_steps_of_an_earlier_start_do_not_count_as_steps_of_this_one(run, ask):
    ask("begin", "--restarts", 5)
    save(run, 4)
    take_step(run, 6)  # and lost with the rank that broke
    assert ask("end", 1).out == "again\n"
    ask("begin", "--restarts", 5)
    answer = ask("end", 2)
    assert answer.out == "stop\n"
    assert "The run did not begin" in answer.err


def test_a_permanent_fault_ends_after_the_budget(run, ask):
    for number in range(3):
        ask("begin", "--restarts", 2)
        save(run, 4 * number)
        take_step(run, 4 * number + 1)
        assert ask("end", 137).out == "again\n"
    with pytest.raises(UserError, match="the run failed 3 times in this job"):
        ask("begin", "--restarts", 2)
    assert "failed 3 times" in starts_of(run, "7")[-1].why


def test_a_cancelled_run_does_not_begin(run, ask):
    ask("begin", "--restarts", 1)
    ask_to_stop(run)
    take_step(run, 1)
    assert ask("end", 0).out == "stop\n"
    with pytest.raises(UserError, match="was cancelled: dsv3 launch starts it again"):
        ask("begin", "--restarts", 1)


def test_a_job_that_was_launched_anew_elsewhere_leaves_the_run_alone(run, ask, monkeypatch):
    monkeypatch.setattr(turn, "SEEN_S", 0.0)
    write_record(run, JobRecord("8", "cpu", "", 0.0))
    with pytest.raises(UserError, match=r"job 7 leaves the run in .* alone: that is job 8 now"):
        ask("begin", "--restarts", 1)
    assert starts_of(run) == []


def test_a_process_that_stays_in_the_folder_is_waited_for_and_then_a_failure(
    run, ask, monkeypatch, capsys
):
    monkeypatch.setattr(turn, "patience_s", lambda recipe: 0.0)
    with run.held(), pytest.raises(UserError, match="no progress between two restarts"):
        ask("begin", "--restarts", 5)
    here = f"process {os.getpid()} on {os.uname().nodename}, of job 7 holds {run.root} still."
    assert capsys.readouterr().err.count(f"dsv3: {here}") == 2
    assert [start.ended for start in starts_of(run, "7")] == ["failed", "failed"]


def test_ranks_on_other_nodes_do_not_count_for_the_next_ones(run, ask):
    looked_at(run.root, n1=[], n2=[], n3=[])
    came(run.root, "began", n1=1, n2=1)  # n2 began, and did not get through
    came(run.root, "done", n1=1)
    ask("blame", "--of", "n1,n2", "--ranks", 1)
    assert ask("pick", "--nodes", 2, "--of", "n1,n2,n3").out == "n1,n3\n"
    came(run.root, "began", n1=1)
    ask("blame", "--of", "n1,n3", "--ranks", 1)
    with pytest.raises(UserError, match=r"n3 \(1 of its 1 rank did not begin"):
        ask("pick", "--nodes", 2, "--of", "n1,n2,n3")


def test_a_spare_takes_the_place_of_a_node_that_is_not_well(run, ask):
    looked_at(run.root, n1=[], n2=["its clock is off"], n3=[])
    answer = ask("pick", "--nodes", 2, "--of", "n1,n2,n3")
    assert answer.out == "n1,n3\n"
    assert "left out: node n2 (its clock is off)" in answer.err
    broken = run.launch / "check" / "broken"
    assert broken.read_text() == "n2\tdsv3: its clock is off\n"
    came(run.root, "began", n1=1)
    ask("blame", "--of", "n1,n3", "--ranks", 1)
    with pytest.raises(UserError, match="1 of 3 nodes passed their check and the run takes 2"):
        ask("pick", "--nodes", 2, "--of", "n1,n2,n3")
    assert broken.read_text().splitlines()[1:] == ["n3\tdsv3: 1 of its 1 rank did not begin"]


def test_where_no_node_gives_a_sign_none_is_to_blame_and_the_job_goes_back(run, ask):
    said = "none of the nodes n1,n2 gave a sign when they were looked at."
    for _ in range(2):
        ask("begin", "--restarts", 5)
        with pytest.raises(Passing, match=said):
            ask("pick", "--nodes", 1, "--of", "n1,n2")
        assert not (run.launch / "check" / "broken").exists()
        assert ask("end", NOT_STARTED).out == "requeue\n"
    assert [start.why for start in starts_of(run, "7")] == [said] * 2
    with pytest.raises(UserError, match=rf"no progress .* \(it ended last with: {said[:-1]}\)\.$"):
        ask("begin", "--restarts", 5)
    # As the script hears it.
    command = [sys.executable, "-m", "dsv3_plugin.launch.job", "pick", run.root]
    words = [*command, "--nodes", "1", "--of", "n1"]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (TRY_AGAIN, "")
    assert answer.stderr == "dsv3: none of the nodes n1 gave a sign when they were looked at.\n"


def test_without_one_the_job_ends_with_a_sentence_that_stays(run, ask):
    ask("begin", "--restarts", 1)
    looked_at(run.root, n1=[])
    with pytest.raises(UserError, match=r"n2 \(it gave no sign.*--exclude=n2"):
        ask("pick", "--nodes", 2, "--of", "n1,n2")
    (start,) = starts_of(run, "7")
    assert start.ended == "refused"
    assert "n2" in start.why


@pytest.mark.parametrize("what", ["pick", "blame"])
def test_who_is_cancelled_while_nodes_are_looked_at_trains_on_none_and_blames_none(run, ask, what):
    ask("begin", "--restarts", 1)
    looked_at(run.root, n1=[], n2=[])
    ask_to_stop(run)
    with pytest.raises(UserError, match="Cancelled while its nodes were looked at"):
        ask(what, "--nodes", 2, "--of", "n1,n2", "--ranks", 1)
    (start,) = starts_of(run, "7")
    assert start.ended == "stopped"


def test_a_network_on_which_no_node_gets_through_is_nobodys_fault(run, ask):
    came(run.root, "began", n1=1, n2=1)
    with pytest.raises(Passing, match="could not add a number up, on no node"):
        ask("blame", "--of", "n1,n2", "--ranks", 1)


def test_the_module_is_what_the_script_calls():
    root = Path(__file__).parents[2]
    text = (root / "launch/templates/slurm.sbatch.j2").read_text(encoding="utf-8")
    named = {*re.findall(r"dsv3_plugin\.([\w.]+)", text)}
    assert named == {"launch.job", "launch.node_check", "launch.all_reduce_check", "cli"}
    for module in named - {"cli"}:
        assert (root / "dsv3_plugin" / f"{module.replace('.', '/')}.py").is_file()
