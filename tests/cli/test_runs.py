"""`dsv3 status`, `logs` and `cancel` on folders of runs."""

import json
import os
import shutil
import time

import pytest

from dsv3_plugin.files import locks
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import local_end
from dsv3_plugin.launch import status as run_status
from dsv3_plugin.launch.job_record import (
    JobRecord,
    ask_to_stop,
    is_asked_to_stop,
    write_record,
)
from dsv3_plugin.launch.starts import remember_end, remember_start
from dsv3_plugin.recipe.load import load_recipe


@pytest.fixture
def no_slurm(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))


@pytest.fixture(autouse=True)
def asked_often(monkeypatch):
    monkeypatch.setattr(run_status, "_ASK_EVERY_S", 0.0)


@pytest.fixture
def slurm(monkeypatch, tmp_path_factory):
    """A function that lets squeue answer with a line, and a file with what scancel was given."""
    folder = tmp_path_factory.mktemp("slurm")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    calls = folder / "calls"

    def answer(line: str):
        for name, body in (("squeue", f"echo '{line}'"), ("scancel", f'echo "$@" >> {calls}')):
            (folder / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
            (folder / name).chmod(0o755)
        return calls

    return answer


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunFolder:
    """A run of six of twelve steps, stopped."""
    monkeypatch.chdir(tmp_path)
    run = RunFolder(tmp_path / "runs" / "small")
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "latest_checkpointed_iteration.txt").write_text("4")
    run.write_recipe("base: pretrain/tiny\ntraining: {steps: 12}\n")
    # Beside the weights, too; and checkpoints may lie anywhere.
    (run.checkpoints / "recipe.yaml").write_bytes(run.recipe.read_bytes())
    shutil.copytree(run.checkpoints, tmp_path / "runs" / "elsewhere")
    for step in range(1, 7):
        run.metrics.append(
            {"iteration": step, "time": 100.0 + step, "tokens": 2048 * step, "loss": 9.0 - step,
             "tokens_per_second": 2048.0}
        )  # fmt: skip
    return run


def stands(dsv3, *words) -> dict:
    said = dsv3("status", *words, "--json")
    assert said.code == 0, said.err
    return json.loads(said.out)


def test_a_run_stands_by_its_files(dsv3, run, no_slurm):
    status = stands(dsv3, "runs/small")
    assert (status["state"], status["step"], status["steps"]) == ("stopped", 6, 12)
    assert (status["loss"], status["saved_step"], status["restarts"]) == (3.0, 4, 0)
    assert status["seconds_left"] is None
    said = dsv3("status")  # all those in runs/
    _, row = said.out.splitlines()
    assert row.split()[:3] == ["runs/small", "stopped", "6/12"]
    assert "stopped" in dsv3("status", run.checkpoints).out  # of the run that they are of


def test_damaged_lines_cost_no_more_than_themselves(dsv3, run, no_slurm):
    with run.metrics.path.open("ab") as file:
        file.write(
            b'\xff\xfe\n[]\n{"iteration": 7, "loss": "low"}\n{"iteration": 8, "loss": null}\n'
        )
    run.metrics.append({"iteration": 9, "loss": 2.5, "tokens_per_second": []})
    with locks.take(run.root, ".lock"):
        status = stands(dsv3, "runs/small")
        assert dsv3("status", "runs/small").code == 0
    assert (status["step"], status["loss"], status["tokens"]) == (9, 2.5, 0)
    assert status["tokens_per_second"] is None
    assert status["seconds_left"] > 0


def test_a_damaged_recipe_hides_no_run(dsv3, run, no_slurm):
    shutil.copytree(run.root, run.root.with_name("other"))
    run.recipe.write_text("{{{")
    assert "runs/other" in dsv3("status").out
    assert stands(dsv3, "runs/small")["step"] == 6
    assert stands(dsv3, "runs/small")["steps"] is None


def test_one_that_a_process_holds_is_training_and_has_time_left(dsv3, run, no_slurm):
    with locks.take(run.root, ".lock"):
        status = stands(dsv3, "runs/small")
        # 2,048 tokens a second of the clock, and 240 steps' worth of batches ahead.
        assert status["state"] == "training"
        assert status["tokens_per_second"] == 2048.0
        assert status["seconds_left"] > 0
    assert stands(dsv3, "runs/small")["state"] == "stopped"


def test_a_job_has_slurms_words_its_restarts_and_why_it_ended(dsv3, run, slurm):
    slurm("7|PENDING|BeginTime|2|1:00:00||")
    write_record(run, JobRecord("7", "cpu", "none", 0.0))
    assert stands(dsv3, "runs/small")["restarts"] == 2
    remember_start(run, "7", 0)
    remember_end(run, "7", "failed", "rank 1 broke")
    status = stands(dsv3, "runs/small")
    assert (status["state"], status["job"]) == ("PENDING (BeginTime)", "7")
    assert "rank 1 broke" in dsv3("status", "runs/small").out
    slurm("7|RUNNING|None|2|1:00:00|n1|")
    assert stands(dsv3, "runs/small")["state"] == "RUNNING"


def test_a_run_that_failed_or_broke_off_is_told_from_one_that_was_stopped(dsv3, run, no_slurm):
    lock = run.root / ".lock"
    lock.write_text(f"process {2**22 + 1} on {os.uname().nodename}")
    local_end.remember(run, "begun")
    status = stands(dsv3, "runs/small")
    assert (status["state"], "without a word" in status["why"]) == ("broke off", True)
    local_end.remember(run, "failed", "rank 1 was killed")
    assert dsv3("status", "runs/small").out.endswith("runs/small: rank 1 was killed\n")
    assert stands(dsv3, "runs/small")["state"] == "failed"
    (run.logs / "rank0.log").write_text("all\n")
    assert dsv3("logs", "runs/small", "-f").err.splitlines() == [
        "The run in runs/small has ended (failed): nothing more will be printed.",
        "rank 1 was killed",
    ]
    later = time.time() + 60  # other ranks went on with it
    os.utime(run.metrics.path, (later, later))
    assert stands(dsv3, "runs/small")["state"] == "stopped"
    local_end.remember(run, "begun")
    lock.write_text(f"process {2**22 + 2} on {os.uname().nodename}")
    assert stands(dsv3, "runs/small")["state"] == "stopped"
    local_end.remember(run, "stopped")
    os.utime(run.metrics.path)
    status = stands(dsv3, "runs/small")
    assert (status["state"], status["why"]) == (
        "stopped",
        "stopped, as it was asked to; the same command goes on from step 4",
    )
    local_end.remember(run, "stopped", "Ended without saving.")
    assert dsv3("status", "runs/small").out.endswith("runs/small: Ended without saving.\n")
    assert len(dsv3("status").out.splitlines()) == 2  # unasked, of what a person has to look at
    local_end.remember(run, "failed", "rank 1 was killed")
    assert dsv3("status").out.endswith("runs/small: rank 1 was killed\n")


@pytest.mark.parametrize(
    ("ended", "state"), [("failed", "failed"), (None, "broke off"), ("stopped", "stopped")]
)
def test_a_job_that_is_over_ended_as_its_last_start_did(dsv3, run, slurm, ended, state):
    write_record(run, JobRecord("7", "cpu", "none", 0.0))
    remember_start(run, "7", 0)
    if ended is not None:
        remember_end(run, "7", ended, "rank 1 broke")
    slurm("")
    assert stands(dsv3, "runs/small")["state"] == state


def test_a_job_without_an_end_is_unknown_where_there_is_no_slurm(dsv3, run, no_slurm):
    write_record(run, JobRecord("7", "cpu", "none", 0.0))
    remember_start(run, "7", 0)
    assert stands(dsv3, "runs/small")["state"] == "unknown"
    remember_end(run, "7", "failed", "rank 1 broke")
    assert stands(dsv3, "runs/small")["state"] == "failed"


def test_a_run_whose_data_are_being_built_is_preparing(dsv3, tmp_path, monkeypatch, no_slurm):
    monkeypatch.chdir(tmp_path)
    new = RunFolder(tmp_path / "runs" / "new")
    with new.held():
        assert "there is no run in runs/" in dsv3("status").err
        new.logs.mkdir()
        (new.logs / "rank0.log").write_text("tokenizing\n")
        assert stands(dsv3)["state"] == "preparing"
        assert dsv3("runs").out.splitlines()[1].split()[:2] == ["runs/new", "preparing"]
        assert dsv3("logs", "runs/new").out.splitlines()[-1] == "tokenizing"


def test_a_job_whose_data_are_being_built_is_preparing(dsv3, tmp_path, monkeypatch, slurm):
    monkeypatch.chdir(tmp_path)
    new = RunFolder(tmp_path / "runs" / "new")
    write_record(new, JobRecord("7", "cpu", "none", 0.0))
    slurm("7|RUNNING|None|0|1:00:00|n1|")
    assert stands(dsv3)["state"] == "RUNNING"  # its nodes are looked at
    new.logs.mkdir()
    assert stands(dsv3)["state"] == "RUNNING, preparing"
    slurm("7|PENDING|Priority|0|1:00:00||")
    assert stands(dsv3)["state"] == "PENDING (Priority)"
    new.recipe.write_text("base: pretrain/tiny\n")
    slurm("7|RUNNING|None|0|1:00:00|n1|")
    assert stands(dsv3)["state"] == "RUNNING"


def test_a_run_whose_conversations_are_counted_first_is_preparing(dsv3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new = RunFolder(tmp_path / "runs" / "new")
    with new.held(), new.preparing():
        assert stands(dsv3)["state"] == "preparing"
    assert not new.logs.exists()
    assert "there is no run in runs/" in dsv3("status").err


@pytest.mark.parametrize("counts", [True, False])
def test_a_run_killed_while_it_prepares_broke_off(dsv3, tmp_path, monkeypatch, counts):
    """While conversations are counted there are no ranks, and nobody says that it began."""
    monkeypatch.chdir(tmp_path)
    run = RunFolder(tmp_path / "runs" / "a")
    run.checkpoints.mkdir(parents=True)
    run.logs.mkdir()
    (run.root / ".lock").write_text(f"process {2**22 + 1} on {os.uname().nodename}")
    if not counts:
        (run.logs / "rank0.log").write_text("tokenizing\n")
        local_end.remember(run, "begun")
    why = (
        "its process ended without a word while its data were being prepared, as where it is "
        "killed, memory runs out or the machine goes down; the same command begins anew"
    )
    for words in ((), ("runs/a",)):
        assert dsv3("status", *words).out.splitlines()[-1] == f"runs/a: {why}"
    assert stands(dsv3)["state"] == "broke off"
    assert dsv3("runs").out.splitlines()[1].startswith("runs/a         broke off")
    not_begun = "dsv3: the run in runs/a has not begun: dsv3 status runs/a says how it stands.\n"
    assert dsv3("plot", "runs/a").err == dsv3("balance", "runs/a").err == not_begun
    assert "was not launched as a job of Slurm" in dsv3("cancel", "runs/a").err
    assert "that has not begun: name the recipe" in dsv3("diff", "runs/a", "pretrain/tiny").err
    said = dsv3("logs", "runs/a")
    assert said.err == not_begun if counts else said.out.splitlines()[-1] == "tokenizing"
    local_end.remember(run, "failed", "rank 1 was killed")
    assert (stands(dsv3)["state"], stands(dsv3)["why"]) == ("failed", "rank 1 was killed")
    local_end.remember(run, "stopped")
    assert stands(dsv3)["state"] == "stopped"


def test_a_job_whose_start_failed_before_it_trained_failed(dsv3, tmp_path, monkeypatch, slurm):
    monkeypatch.chdir(tmp_path)
    new = RunFolder(tmp_path / "runs" / "new")
    write_record(new, JobRecord("7", "cpu", "none", 0.0))
    slurm("")
    assert stands(dsv3)["state"] == "not begun"
    new.logs.mkdir()
    remember_start(new, "7", 0)
    remember_end(new, "7", "failed", "rank 1 broke")
    assert (stands(dsv3)["state"], stands(dsv3)["why"]) == ("failed", "rank 1 broke")


NOBODY = """squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
squeue: error: fetch_config: DNS SRV lookup failed
squeue: fatal: Could not establish a configuration source"""


def test_where_slurm_does_not_answer_nobody_knows_how_a_job_stands(dsv3, run, slurm):
    write_record(run, JobRecord("7", "cpu", "none", 0.0))
    waits = RunFolder(run.root.parent / "waits")
    write_record(waits, JobRecord("8", "cpu", "none", 0.0))
    squeue = slurm("").parent / "squeue"
    squeue.write_text(f"#!/bin/sh\necho '{NOBODY}' >&2; exit 1\n")
    first = "squeue says: squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host"
    noted = f"{first}: Slurm's controller is not reached from here: ask on a login node.\n"
    for verb in ("status", "runs"):
        said = dsv3(verb)
        assert (said.code, said.err) == (0, f"Note: {noted}")
        assert said.out.count("unknown") == 2
    assert "launched as job 8, and nothing more is known of it" in dsv3("status", waits.root).out
    for words in (("cancel", "runs/small"), ("launch", "pretrain/tiny", "--after", "7")):
        said = dsv3(*words, *(["--cluster", "h800"] if words[0] == "launch" else []))
        assert (said.code, said.err) == (2, f"dsv3: {noted}")
    (run.checkpoints / "latest_checkpointed_iteration.txt").write_text("12")
    assert stands(dsv3, "runs/small")["state"] == "done"


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
    slurm("7|RUNNING|None|0|1:00:00|n1|")
    assert dsv3("status", "7").out == dsv3("status", "runs/small").out
    assert [line.split()[0] for line in dsv3("status", "9").out.splitlines()[1:]] == [
        "runs/sweep/seed-0",
        "runs/sweep/seed-1",
    ]
    assert dsv3("cancel", "7").out.startswith("Job 7 finishes its step")
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


def test_a_run_that_waits_for_its_job_is_told_of_in_plain_words(dsv3, tmp_path, slurm, monkeypatch):
    monkeypatch.chdir(tmp_path)
    waits = RunFolder(tmp_path / "runs" / "new")
    write_record(waits, JobRecord("7", "cpu", "runs/new/launch/job-7.out", 0.0))
    waits.launched_with.write_text("base: pretrain/tiny\ntraining: {steps: 12}\n")
    (waits.launch / "job.sbatch").write_text("")
    slurm("7|PENDING|Priority|0|1:00:00||")
    said = dsv3("status", "runs/new")
    assert "PENDING (Priority)" in said.out
    assert (
        "runs/new: launched as job 7, and not begun; what that prints is in runs/new/launch/job-7"
        in said.out
    )
    not_begun = "the run in runs/new has not begun: dsv3 status runs/new says how its job stands."
    for verb in ("logs", "plot", "balance"):
        said = dsv3(verb, "runs/new")
        assert (said.code, said.out, said.err) == (2, "", f"dsv3: {not_begun}\n")
    said = dsv3("diff", "pretrain/tiny", "runs/new")
    assert said.code == 0, said.err
    assert "training.steps" in said.out
    assert said.out.endswith(
        "runs/new has not begun: its recipe is the one that it was launched with.\n"
    )
    refused = dsv3("plan", "runs/new").err
    assert "a run that has not begun; it was launched with runs/new/launch/recipe.yaml" in refused


def test_a_run_that_goes_on_with_another_recipe_says_so_until_then(dsv3, run, slurm):
    slurm("7|PENDING|Priority|0|1:00:00||")
    run.recipe.write_text(load_recipe("pretrain/tiny", ["directory=runs/small"]).to_yaml())
    os.utime(run.recipe, (1e9, 1e9))
    run.launch.mkdir()
    words = ["directory=runs/small", "training.seed=7", "cluster=h800"]
    run.launched_with.write_text(load_recipe("pretrain/tiny", words).to_yaml())
    write_record(run, JobRecord("7", "cpu", "none", time.time()))
    again = "launched as job 7 with another recipe (training.seed: 1234 → 7), with which it has not"
    for named in ((), ("runs/small",)):
        last = dsv3("status", *named).out.splitlines()[-1]
        assert last == f"runs/small: {again} begun yet; what stands here is of the one before."
    said = dsv3("diff", "runs/small", "pretrain/tiny")
    assert said.out.startswith("The recipes are the same in all keys but"), said.err
    assert f"runs/small: {again} begun yet; what is compared is the one before, and " in said.out
    write_record(run, JobRecord("7", "cpu", "none", 0.0))  # Slurm was given no job of the recipe
    assert "another recipe" not in dsv3("status").out
    write_record(run, JobRecord("7", "cpu", "none", time.time()))
    run.recipe.write_bytes(run.launched_with.read_bytes())
    assert "another recipe" not in dsv3("status").out


def test_a_run_that_slurm_did_not_take_is_compared_by_its_recipe(dsv3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "runs" / "new")
    folder.launch.mkdir(parents=True)
    folder.launched_with.write_text(load_recipe("pretrain/tiny", ["training.seed=7"]).to_yaml())
    said = dsv3("diff", "runs/new", "pretrain/tiny")
    assert "name what it was launched with, runs/new/launch/recipe.yaml." in said.err
    assert "training.seed: 7 → 1234" in dsv3("diff", f"{folder.launched_with}", "pretrain/tiny").out


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
