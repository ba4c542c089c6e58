"""What is said of runs that are launched and have not begun."""

import json
import os
import time

from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch.job_record import (
    JobRecord,
    write_record,
)
from dsv3_plugin.recipe.load import load_recipe


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
    assert json.loads(dsv3("status", "--json").out)["relaunched"] == f"{again} begun yet"
    found = json.loads(dsv3("diff", "runs/small", "pretrain/tiny", "--json").out)
    assert found["relaunched"][0].startswith(f"runs/small: {again} begun yet; ")
    assert found["not_begun"] == []
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
