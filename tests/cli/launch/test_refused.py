"""What `dsv3 launch` refuses in a sentence before anything is queued."""

from pathlib import Path

import pytest

from dsv3_plugin.launch import partitions
from tests.launch.jobs import LAUNCH, write_cluster


def test_gpus_that_a_cluster_does_not_have_are_refused(dsv3):
    said = dsv3(*LAUNCH, "host=gpu", "--dry-run")
    assert said.code == 2
    assert (
        "the recipe computes on GPUs (host: gpu), and the cluster's file says host: cpu" in said.err
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("launch", "pretrain/tiny"), "names no cluster: name one with --cluster"),
        (
            (*LAUNCH, "--nodes", "3"),
            "2 ranks cannot be divided evenly among 3 nodes: take --nodes 1 or 2, or set par",
        ),
        ((*LAUNCH, "--after", "nobody"), "run that was launched: name one of those (dsv3 status"),
        ((*LAUNCH, "--array", "training.seed=1,1"), "name each value once"),
        ((*LAUNCH, "--after", "7_"), "neither a number of a job nor the folder of a run"),
        ((*LAUNCH, "--array", "directory=a,b"), "has a folder of its own already"),
        ((*LAUNCH, "--array", "training.seed"), "is not an override"),
        ((*LAUNCH, "--array", "training.sed=1,2"), "unknown key"),
        ((*LAUNCH, "--torchrun", "--dry-run"), "is started by hand: leave out --dry-run."),
        (("launch", "pretrain/deepseek-v3", "--cluster", "two.yaml"), "asks for 2,048 devices"),
        ((*LAUNCH, "directory=runs/a\nb"), "cannot name"),
        ((*LAUNCH, "directory=runs/a\\b"), "cannot name"),
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
        (
            "partition",
            "two words",
            "launch.partition: 'two words' is no name that Slurm takes: write",
        ),
        ("options", ["rm -rf"], "launch.options.0: "),
        ("options", ["--comment='it"], "launch.options.0: "),
        ("options", ["--comment=a\\"], "launch.options.0: "),
        ("options", ["--no-requeue"], "--no-requeue in options is for the script of a job to say"),
        (
            "options",
            ["--outp=x"],
            "--outp=x in options is for the script of a job to say: leave it",
        ),
        ("options", ["--time=1"], "say it with launch.time_limit_hours"),
        ("options", ["--mem=1G"], "say it with launch.exclusive"),
        ("environment", {"A B": "1"}, "'A B' is no name of a variable"),
        ("environment", {"É": "1"}, "'É' is no name of a variable"),
        ("environment", {"RANK": "1"}, "RANK in environment would be the same for all ranks"),
        ("container", {"runtime": "pyxis", "image": "x", "mounts": ["/a:/a,/b:/b"]}, "mounts.0: "),
        ("partitoin", "x", "unknown key 'launch.partitoin' (nearest: 'launch.partition')"),
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


def test_what_a_job_would_certainly_lack_is_said_before_it_is_queued(dsv3, sbatch, tmp_path):
    sbatch(f"touch {tmp_path}/queued; echo 12")
    lacking = f"data.corpus: corpus does not exist in {tmp_path}: put it there, or name another"
    said = dsv3(*LAUNCH, "data.corpus=corpus/")
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines()[-1] == f"dsv3: tiny: {lacking}."
    assert not (tmp_path / "queued").exists()
    for way, so in (
        ("--dry-run", "dsv3 launch queues nothing before"),
        ("--torchrun", "without that the run cannot begin"),
    ):  # which need nothing yet
        said = dsv3(*LAUNCH, "data.corpus=corpus/", way)
        assert said.code == 0
        assert f"Note: {lacking}; {so}.\n" in said.err
    child = ("launch", "extend/tiny-1k", "--cluster", "two.yaml", "--torchrun")
    assert "is not there yet, and has to be when the run begins.\n" in dsv3(*child).err
    image = {"runtime": "pyxis", "image": "nvcr.io/team/dsv3:1"}
    write_cluster(tmp_path, {"container": image})
    said = dsv3(*LAUNCH, "data.corpus=corpus/", "--kubernetes")  # whose pods see this folder
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines()[-1] == f"dsv3: tiny: {lacking}."
    said = dsv3(*LAUNCH, "data.corpus=corpus/", "--skypilot")  # its nodes see another
    assert said.code == 0
    by = "# Written by: dsv3 launch pretrain/tiny --cluster two.yaml --skypilot data.corpus=corpus/"
    assert by in said.out.splitlines()


def test_a_partition_that_slurm_does_not_have_is_refused_before_it_is_queued(
    dsv3, sbatch, tmp_path, monkeypatch
):
    monkeypatch.setattr(partitions, "_PATIENCE_S", 300.0)  # on a machine with much to do
    write_cluster(tmp_path, {"partition": "mian"})
    sbatch(f"touch {tmp_path}/queued; echo 12", has="main long")
    said = dsv3(*LAUNCH)
    sentence = "launch.partition: the Slurm here has no mian (nearest: 'main'): name another in the"
    assert (said.code, sentence in said.err) == (2, True)
    assert not (tmp_path / "queued").exists()
    said = dsv3(*LAUNCH, "--dry-run")  # it may be for another place
    assert (said.code, f"Note: {sentence}" in said.err) == (0, True)
    assert "partition" not in dsv3(*LAUNCH, "--torchrun").err
    sbatch(has="")
    assert "launch.partition" not in dsv3(*LAUNCH, "--dry-run").err  # it does not say


def test_slurms_refusal_is_passed_on(dsv3, sbatch):
    sbatch("echo 'sbatch: error: invalid partition specified: main' >&2; exit 1")
    said = dsv3(*LAUNCH)
    assert said.code == 2
    assert "Slurm does not take the job: sbatch: error: invalid partition specified" in said.err
    assert dsv3("status", "runs/tiny").code == 2  # no run came of it
    assert "the run in runs/tiny has not begun, and Slurm was given no job" in dsv3("status").err
