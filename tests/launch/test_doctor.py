"""`dsv3 doctor` names what is there, and what each missing thing costs."""

import os
from pathlib import Path

import pytest

from dsv3_plugin.launch import doctor


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
    ],
)
def test_a_slurm_that_does_not_answer_is_none(tmp_path, monkeypatch, script, found, cost):
    _sinfo(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    [slurm] = (finding for finding in doctor.examine() if finding.name == "Slurm")
    assert slurm.found == found
    assert slurm.cost.startswith(cost)
