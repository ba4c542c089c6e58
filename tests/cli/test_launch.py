"""`dsv3 launch`: what is printed and submitted, and what is refused before anything is queued."""

from pathlib import Path

import pytest

from dsv3_plugin.files import locks
from dsv3_plugin.launch import submit
from dsv3_plugin.recipe.load import load_recipe
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

    def put(body: str = "echo 12", queue: str = "") -> None:
        for name, text in (("sbatch", body), ("squeue", f"echo '{queue}'"), ("scancel", "")):
            (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
            (folder / name).chmod(0o755)

    put()
    return put


LAUNCH = ("launch", "pretrain/tiny", "--cluster", "two.yaml")


def test_a_dry_run_prints_the_script_and_leaves_nothing(dsv3, tmp_path):
    said = dsv3(*LAUNCH, "--nodes", 2, "--dry-run", "training.steps=12")
    assert said.code == 0
    assert said.out.startswith("#!/bin/bash\n# tiny on two: 12 steps")
    assert "#SBATCH --partition=main\n" in said.out
    assert "dsv3 launch pretrain/tiny --cluster two.yaml --nodes 2 training.steps=12" in said.out
    assert [path.name for path in tmp_path.iterdir()] == ["two.yaml"]


def test_torchruns_lines_are_those_of_each_node(dsv3):
    said = dsv3(*LAUNCH, "--nodes", 2, "--torchrun", "training.steps=12")
    _, first, second = said.out.splitlines()
    assert first.startswith("torchrun --nnodes=2 --node-rank=0 --nproc-per-node=1 ")
    assert "--node-rank=1" in second
    assert second.endswith("-m dsv3_plugin.cli train pretrain/tiny training.steps=12")


def test_a_job_is_submitted_with_the_recipe_as_it_is_now(dsv3, sbatch, tmp_path):
    said = dsv3(*LAUNCH, "training.steps=12")
    assert said.out == "Job 12: tiny in runs/tiny; dsv3 status runs/tiny shows it.\n"
    kept = load_recipe(Path("runs/tiny/launch/recipe.yaml"))
    assert kept.training.steps == 12
    assert kept.cluster == str(tmp_path / "two.yaml")
    assert "#SBATCH" in Path("runs/tiny/launch/job.sbatch").read_text()
    said = dsv3("status", "runs/tiny")
    assert "12" in said.out
    assert "0/12" in said.out


def test_a_sweep_has_a_run_for_each_value(dsv3, sbatch):
    said = dsv3(*LAUNCH, "--array", "training.seed=1,2,3", "directory=runs/sweep")
    assert said.code == 0, said.err
    for number, seed in enumerate((1, 2, 3)):
        folder = Path(f"runs/sweep/seed-{seed}")
        kept = load_recipe(folder / "launch" / "recipe.yaml")
        assert (kept.training.seed, kept.folder) == (seed, folder)
        assert f"12_{number}" in dsv3("status", folder).out
    assert "#SBATCH --array=0-2" in Path("runs/sweep/launch/job.sbatch").read_text()
    assert len(dsv3("status").out.splitlines()) == 1 + 3


def test_a_job_waits_for_another_or_for_that_of_a_run(dsv3, sbatch):
    assert "afterok:7\n" in dsv3(*LAUNCH, "--after", 7, "--dry-run").out
    dsv3(*LAUNCH)
    child = ("launch", "extend/tiny-1k", "--cluster", "two.yaml", "--after", "runs/tiny")
    sbatch(queue="12|PENDING|Priority|0|1:00:00||")
    assert "afterok:12\n" in dsv3(*child, "--dry-run").out
    sbatch()  # it has ended before the run was at its end
    refused = dsv3(*child, "--dry-run")
    assert (refused.code, refused.out) == (2, "")
    assert "job 12 of that run has ended, and the run is not at its end" in refused.err


def test_a_run_that_is_done_is_not_waited_for(dsv3, sbatch, monkeypatch):
    dsv3(*LAUNCH)
    monkeypatch.setattr(submit, "is_done", lambda recipe: recipe.folder == Path("runs/tiny"))
    child = ("launch", "extend/tiny-1k", "--cluster", "two.yaml", "--after", "runs/tiny")
    said = dsv3(*child, "--dry-run")
    assert said.code == 0, said.err
    assert "afterok" not in said.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("launch", "pretrain/tiny"), "names no cluster: name one with --cluster"),
        ((*LAUNCH, "--nodes", "3"), "2 ranks do not divide evenly among 3 nodes"),
        ((*LAUNCH, "--after", "nobody"), "neither a number of a job nor the folder of a run"),
        ((*LAUNCH, "--array", "training.seed=1,1"), "name each value once"),
        ((*LAUNCH, "--array", "training.seed"), "is not an override"),
        ((*LAUNCH, "--array", "training.sed=1,2"), "unknown key"),
        ((*LAUNCH, "--torchrun", "--dry-run"), "--torchrun starts one run by hand"),
        (("launch", "pretrain/deepseek-v3", "--cluster", "two.yaml"), "asks for 2,048 devices"),
        ((*LAUNCH, "directory=runs/a\nb"), "cannot name"),
    ],
)
def test_what_cannot_be_is_a_sentence_before_anything_is_queued(
    dsv3, sbatch, tmp_path, words, sentence
):
    sbatch(f"touch {tmp_path}/queued; echo 12")
    said = dsv3(*words)
    assert (said.code, said.out) == (2, "")
    assert sentence in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["two.yaml"]


def test_what_does_not_fit_is_refused_with_the_nearest_that_does(dsv3, sbatch, tmp_path):
    path = write_cluster(tmp_path, {})
    path.write_text(path.read_text().replace("memory_gb: 12", "memory_gb: 0.1"))
    said = dsv3(*LAUNCH)
    assert (said.code, said.out) == (2, "")
    assert "tiny on two: it does not fit: pipeline rank 0 needs" in said.err


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("spares", -1, "'launch.spares' is -1"),
        ("time_limit_hours", 0, "'launch.time_limit_hours' is 0"),
        ("restarts", 10**9, "'launch.restarts' is 1000000000"),
        ("partition", "two words", "'launch.partition'"),
        ("options", ["rm -rf"], "'launch.options.0'"),
        ("environment", {"A B": "1"}, "launch.environment"),
        ("partitoin", "x", "unknown key 'launch.partitoin' (nearest: 'partition')"),
    ],
)
def test_a_clusters_file_that_cannot_be_is_refused(dsv3, tmp_path, key, value, sentence):
    write_cluster(tmp_path, {key: value})
    said = dsv3(*LAUNCH, "--dry-run")
    assert said.code == 2
    assert sentence in said.err


def test_without_slurm_there_is_a_sentence_and_nothing_is_left(dsv3, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    said = dsv3(*LAUNCH)
    assert said.code == 2
    assert "there is no Slurm here (sbatch is not on the PATH)" in said.err
    assert not Path("runs").exists()


def test_slurms_refusal_is_passed_on(dsv3, sbatch):
    sbatch("echo 'sbatch: error: invalid partition specified: main' >&2; exit 1")
    said = dsv3(*LAUNCH)
    assert said.code == 2
    assert "Slurm does not take the job: sbatch: error: invalid partition specified" in said.err
    assert dsv3("status", "runs/tiny").code == 2  # no run came of it


def test_a_run_that_has_a_job_or_a_process_is_left_alone(dsv3, sbatch):
    dsv3(*LAUNCH)
    before = Path("runs/tiny/launch/recipe.yaml").read_bytes()
    sbatch("exit 9", queue="12|RUNNING|None|0|1:00:00|n1|")
    said = dsv3(*LAUNCH, "training.steps=5")
    assert said.code == 2
    assert "the run in runs/tiny is job 12 already, RUNNING" in said.err
    assert Path("runs/tiny/launch/recipe.yaml").read_bytes() == before
    sbatch("exit 9")
    with locks.take(Path("runs/tiny"), ".lock"):
        said = dsv3(*LAUNCH)
    assert "another run is using runs/tiny" in said.err
