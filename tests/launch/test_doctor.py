"""`dsv3 doctor` names what is there, and what each missing thing costs."""

import os
from pathlib import Path

import pytest

from dsv3_plugin.launch import doctor, node_check
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.cluster_launch import Launch


def test_it_knows_this_machine():
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["megatron-core"].found == "0.19.2"
    assert found["torch"].found
    assert found.keys() >= {"Python", "GPUs", "Transformer Engine", "DeepEP", "Apex", "Slurm"}


def test_every_missing_thing_has_its_cost():
    assert all(finding.cost for finding in doctor.examine() if finding.found is None)


def _sinfo(folder: Path, script: str) -> None:
    """A command of this name that answers as the script says, before all others."""
    command = folder / "sinfo"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "found", "cost"),
    [
        ("[ $1 = --version ] && echo slurm 24.05.1 || echo 2", "slurm 24.05.1, answers", ""),
        (
            "[ $1 = --version ] && echo slurm 24.05.1 || { echo no controller >&2; exit 1; }",
            None,
            "slurm 24.05.1 is installed, and does not answer (no controller): ",
        ),
        (
            "echo no configuration >&2; exit 1",
            None,
            "it is installed, and does not answer (no configuration): ",
        ),
    ],
)
def test_a_slurm_that_does_not_answer_is_none(tmp_path, monkeypatch, script, found, cost):
    _sinfo(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    [slurm] = (finding for finding in doctor.examine() if finding.name == "Slurm")
    assert slurm.found == found
    assert slurm.cost.startswith(cost)


def test_a_node_is_looked_at_for_what_its_cluster_says(tmp_path, monkeypatch):
    monkeypatch.setattr(node_check, "_ADAPTERS", tmp_path / "none")
    monkeypatch.delenv("NCCL_IB_HCA", raising=False)
    scratch = tmp_path / "scratch"
    launch = Launch(environment={"NCCL_IB_HCA": "mlx5"}, scratch=str(scratch), scratch_gb=1e9)
    report = doctor.examine_node(
        load_cluster("h800").model_copy(update={"launch": launch}), tmp_path
    )
    gpus, adapters, room = report.problems
    assert gpus.endswith("GPUs, of 8 that the cluster's file says")
    assert adapters == "there is no adapter mlx5 (NCCL_IB_HCA)"
    assert f"free in {scratch}, of" in room
    assert report.looked_at == ["8 GPUs", "adapters mlx5", "the clock", str(tmp_path), str(scratch)]


def test_a_folder_that_cannot_be_written_is_a_problem_too(tmp_path):
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "below"
    report = doctor.examine_node(load_cluster("cpu"), place)
    assert report.problems == [f"{place} cannot be written there"]
