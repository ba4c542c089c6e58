"""A run of a few steps, and what stands for Slurm."""

import shutil

import pytest

from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import status as run_status


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
