"""`dsv3 status` of runs: how they stand, by their files and by Slurm."""

import json
import os
import shutil
import time

import pytest

from dsv3_plugin.files import locks
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import local_end
from dsv3_plugin.launch.job_record import JobRecord, ask_to_stop, write_record
from dsv3_plugin.launch.starts import remember_end, remember_start


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
    again = "runs/small goes on from step 4 by: dsv3 launch runs/small/launch/recipe.yaml"
    assert dsv3("status", "runs/small").out.splitlines()[-1] == again  # by what there is of it
    assert "by: " not in dsv3("status").out
    write_record(run, JobRecord("7", "cpu", "none", 0.0, "dsv3 launch it --cluster h800"))
    said = dsv3("status", "runs/small").out
    assert said.endswith("runs/small goes on from step 4 by: dsv3 launch it --cluster h800\n")
    slurm("7|RUNNING|None|2|1:00:00|n1|")
    assert "by: " not in dsv3("status", "runs/small").out


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
    assert stands(dsv3)["why"].endswith("printed nothing, as where it is cancelled while it waits")
    output = tmp_path / "job-7.out"
    write_record(new, JobRecord("7", "cpu", str(output), 0.0, "dsv3 launch it"))
    output.write_text("dsv3: launch.venv: /v is a file\nbash: never mind\n")
    why = "job 7 ended before the run began: launch.venv: /v is a file; what it printed is in "
    why += str(output)
    assert (stands(dsv3)["state"], stands(dsv3)["why"]) == ("failed", why)
    assert dsv3("status", "runs/new").out.splitlines()[2:] == [
        f"runs/new: {why}",
        "runs/new begins anew by: dsv3 launch it",
    ]
    output.write_text("bash: /v/bin/activate: Not a directory\n")
    assert f"before the run began; what it printed is in {output}" in stands(dsv3)["why"]
    ask_to_stop(new)
    assert stands(dsv3)["why"] == "job 7 was cancelled before the run began"
    assert stands(dsv3)["state"] == "stopped"
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
    last = "squeue says: Could not establish a configuration source"
    noted = f"{last}: Slurm's controller is not reached from here: ask on a login node.\n"
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
