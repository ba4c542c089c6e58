"""A folder to launch from, and what stands for Slurm."""

from functools import partial

import pytest

from dsv3_plugin.launch import submit
from tests.launch.jobs import write_cluster, write_slurm


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

    put = partial(write_slurm, folder)
    put()
    return put
