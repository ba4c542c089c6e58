"""A folder to launch from, and what stands for Slurm."""

import pytest

from dsv3_plugin.launch import submit
from tests.launch.jobs import write_cluster


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """A folder with a cluster's file, and no rehearsal: that costs a process that imports torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submit, "refuse_what_upstream_would", lambda *_: None)
    write_cluster(tmp_path, {"partition": "main"})


@pytest.fixture
def sbatch(monkeypatch, tmp_path_factory):
    """A Slurm that takes jobs as number 12 and has them waiting; or what a body says instead."""
    folder = tmp_path_factory.mktemp("slurm")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(body: str = "echo 12", queue: str = "", cancel: str = "") -> None:
        for name, text in (("sbatch", body), ("squeue", f"echo '{queue}'"), ("scancel", cancel)):
            (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
            (folder / name).chmod(0o755)

    put()
    return put
