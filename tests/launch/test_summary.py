"""What is said of a recipe before it runs."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from dsv3_plugin.data.tokenizer import train_bpe
from dsv3_plugin.launch.idle_gpus import on_cluster
from dsv3_plugin.launch.needs import missing_texts
from dsv3_plugin.launch.summary import summary
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.recipe.load import load_recipe


def told(*overrides: str, of: str = "rl/tiny", gpus: int = 0) -> list[str]:
    out = io.StringIO()
    machine = Machine(gpus=gpus, transformer_engine=False)
    Console(file=out, width=400).print(summary(load_recipe(of, [*overrides]), machine))
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("overrides", "rewards"),
    [
        ([], "match"),
        (["rewards=null"], "accuracy"),
        (["rewards={format: {weight: 0.2}}"], "match + 0.2 × format"),
    ],
)
def test_rewards_and_answers_are_said(overrides: list[str], rewards: str):
    said = told(*overrides)
    assert f"rewards {rewards}" in said
    assert "answers 32 prompts × 16 in a round, of 4 tokens at most" in said


@pytest.mark.parametrize(
    ("overrides", "gpus", "minds"),
    [
        ([], 0, []),
        ([], 1, ["this machine has 1 GPU, which stays idle: host=auto computes on it"]),
        (["cluster=cpu"], 8, ["computes on processors alone, and this machine has 8 GPUs, which"]),
        (["host=auto"], 8, []),
        (["host=auto", "cluster=h100"], 8, []),
        (["host=auto", "cluster=cpu"], 0, []),
        (["host=auto", "cluster=cpu"], 8, ["planned for cpu, whose file says host: cpu: host=cpu"]),
        (["host=auto", "cluster=nowhere.yaml"], 8, []),
    ],
)
def test_gpus_that_a_run_leaves_idle_are_minded(overrides: list[str], gpus: int, minds: list[str]):
    said = [one for one in told(*overrides, of="pretrain/tiny", gpus=gpus) if "GPU" in one]
    assert len(said) == len(minds)
    assert all(sentence in one for sentence, one in zip(minds, said, strict=True))


def test_a_large_batch_is_shown_in_full():
    said = told("curves.batch_size=100000", of="pretrain/tiny")
    assert "batch_size constant 100,000" in said


def test_a_cluster_that_is_not_there_is_minded():
    minds = [one for one in told("cluster=h10", of="pretrain/tiny") if one.startswith("mind")]
    assert len(minds) == 1
    assert minds[0].startswith("mind cluster: 'h10' is neither a file nor a shipped cluster (near")
    assert minds[0].endswith("'): plans and jobs of this recipe are refused")


def test_a_job_that_asks_for_none_of_a_clusters_gpus_is_minded():
    recipe, other = (load_recipe("pretrain/tiny", [host]) for host in ("host=cpu", "host=auto"))
    [sentence] = on_cluster(recipe, load_cluster("h800"))
    assert "nodes of h800 have 8 GPUs each, which the job does not ask for: host=auto" in sentence
    assert not [*on_cluster(other, load_cluster("h800"))]
    assert not [*on_cluster(recipe, load_cluster("cpu"))]


def test_steps_that_nobody_has_counted_are_no_promise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [steps] = [line for line in told(of="sft/tiny") if line.startswith("steps")]
    assert steps.endswith("by data.sequences; they are counted when the data are built")


def test_a_template_that_is_not_there_is_missed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("sft/tiny", ["data.template=nope.jinja", "data.made_by=null"])
    assert any("data.template: nope.jinja does not exist" in one for one in missing_texts(recipe))


def test_a_dry_run_minds_what_files_say_by_themselves(dsv3, tmp_path, monkeypatch):
    """Intervals of the base, a tokenizer in a folder, a held-out set of one document."""
    monkeypatch.chdir(tmp_path)
    train_bpe(["a few words"], 290, tmp_path / "hf")
    Path("book.txt").write_text("a few words")
    Path("mine.yaml").write_text(
        "base: pretrain/tiny\n"
        "training: {steps: 20}\n"
        "data: {tokenizer: hf, fim_rate: 0, held_out_sets: {book: book.txt}}\n"
    )
    said = " ".join(dsv3("train", "mine.yaml", "--dry-run").out.split())
    assert "eval_interval 40 (pretrain/tiny says so, its base) is more than the 20 steps" in said
    assert "checkpoint.interval 60 (pretrain/tiny says so, its base) is more than the 20" in said
    assert re.search(r"data.tokenizer hf has \d+ ids and the model 4,096: the rest are never", said)
    assert "data.held_out_sets.book has 11 bytes, and so fewer than 12 tokens" in said
    assert "data.held_out_sets.book is a single document" in said
