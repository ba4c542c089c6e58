"""`dsv3 launch --dry-run` and `--torchrun`: what is printed."""

import pytest

from dsv3_plugin.launch import submit
from tests.launch.jobs import LAUNCH, write_cluster


def test_a_dry_run_prints_the_script_and_leaves_nothing(dsv3, tmp_path):
    said = dsv3(*LAUNCH, "--nodes", 2, "--dry-run", "training.steps=12")
    assert said.code == 0
    assert said.out.startswith("#!/bin/bash\n# tiny on two: 12 steps")
    assert "#SBATCH --partition=main\n" in said.out
    assert "dsv3 launch pretrain/tiny --cluster two.yaml --nodes 2 training.steps=12" in said.out
    assert [path.name for path in tmp_path.iterdir()] == ["two.yaml"]


def test_torchruns_lines_are_those_of_each_node(dsv3, tmp_path):
    said = dsv3(*LAUNCH, "--nodes", 2, "--torchrun", "training.steps=12")
    by, _, first, second = said.out.splitlines()
    assert by.startswith("# Written by: dsv3 launch pretrain/tiny --cluster two.yaml ")
    assert " --torchrun" in by
    assert first.startswith("torchrun --nnodes=2 --node-rank=0 --nproc-per-node=1 ")
    assert "--node-rank=1" in second
    there = tmp_path / "two.yaml"  # what the run is planned for, wherever it is started
    assert second.endswith(f"train pretrain/tiny training.steps=12 cluster={there}")


def test_what_kubernetes_lacks_is_refused_before_the_rehearsal(dsv3, monkeypatch):
    monkeypatch.setattr(submit, "refuse_what_upstream_would", lambda *_: pytest.fail("rehearsed"))
    said = dsv3(*LAUNCH, "--kubernetes")
    assert (said.code, said.out) == (2, "")
    assert "--kubernetes starts pods of an image: name one" in said.err


def test_torchruns_lines_bring_what_the_clusters_file_says_of_ranks(dsv3, tmp_path):
    keys = {"environment": {"NCCL_IB_HCA": "mlx5", "ODD": "a 'b'"}, "scratch": "/local"}
    write_cluster(tmp_path, {**keys, "venv": "/v"})
    line = dsv3(*LAUNCH, "--torchrun").out.splitlines()[2]
    assert line.startswith(
        "NCCL_IB_HCA=mlx5 ODD='a '\"'\"'b'\"'\"'' TMPDIR=/local /v/bin/torchrun --nnod"
    )
    write_cluster(tmp_path, {"setup": ["module load cuda"]})
    line = dsv3(*LAUNCH, "--torchrun").out.splitlines()[2]
    assert line.startswith("eval 'module load cuda' && torchrun --nnodes=1 ")
    write_cluster(tmp_path, {"container": {"runtime": "apptainer", "image": "x.sif"}})
    line = dsv3(*LAUNCH, "--torchrun").out.splitlines()[2]
    assert line.startswith("apptainer exec --bind=")
    assert " x.sif torchrun --nnodes=1 " in line


def test_a_container_sees_the_run_wherever_it_is(dsv3, tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_cluster(tmp_path, {"container": {"runtime": "pyxis", "image": "x"}, "scratch": "/local"})
    words = (f"directory={elsewhere}/runs/tiny", "checkpoint.directory=here")
    said = dsv3(*LAUNCH, *words, "--dry-run")
    assert (
        f"--container-mounts={tmp_path}:{tmp_path},{elsewhere}:{elsewhere},/local:/local"
        in said.out
    )
    texts, tokenizer = elsewhere / "texts.jsonl", elsewhere / "tokenizer"
    texts.touch()
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").touch()
    (tmp_path / "link").symlink_to(texts)
    words = ("data.corpus=link", f"data.tokenizer={tokenizer}")
    said = dsv3(*LAUNCH, *words, "--dry-run")
    mounts = f"{tmp_path}:{tmp_path},{texts}:{texts},{tokenizer}:{tokenizer},/local:/local"
    assert f"--container-mounts={mounts} " in said.out
    assert "the image sees it only" not in said.err
    refused = dsv3(*LAUNCH, f"directory={elsewhere}/a:b/tiny", "--dry-run")
    assert refused.code == 0  # it is not there yet, and its parent is mounted
    (elsewhere / "a:b").mkdir()
    refused = dsv3(*LAUNCH, f"directory={elsewhere}/a:b/tiny", "--dry-run")
    assert "cannot be mounted into a container: its name has a colon" in refused.err


def test_options_that_contradict_nothing_are_passed_on(dsv3, tmp_path):
    options = ["--mem=64G", "--time-min=60", "--exclude=n[1-2]", "--gres=nvme:1"]
    write_cluster(tmp_path, {"exclusive": False, "options": options})
    script = dsv3(*LAUNCH, "--dry-run").out
    assert all(f"#SBATCH {option}\n" in script for option in options)


def test_a_tilde_is_the_home_folder(dsv3, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    write_cluster(tmp_path, {"venv": "~/venv", "scratch": "~/local"})
    script = dsv3(*LAUNCH, "--dry-run").out
    assert "source /home/me/venv/bin/activate\n" in script
    assert "TMPDIR=/home/me/local\n" in script
    assert "~" not in script
    image = {"runtime": "apptainer", "image": "~/dsv3.sif", "mounts": ["~/data:/data"]}
    write_cluster(tmp_path, {"container": image})
    script = dsv3(*LAUNCH, "--dry-run").out
    assert ",/home/me/data:/data --pwd=" in script
    assert " /home/me/dsv3.sif python3 " in script
