"""docs/zero-to-256.md: its jobs can be launched with the cluster's file that it shows."""

import re

import pytest
import yaml

from dsv3_plugin.numbers import time_text
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.counts import parameter_counts
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.recipe.load import load_recipe
from tests.docs.pages import ROOT, Page

PAGE = Page(ROOT / "docs" / "zero-to-256.md")
CLUSTER = "my-h100.yaml"
JOBS = [words for words in PAGE.commands() if words[0] == "launch" and CLUSTER in words]


@pytest.fixture
def written(tmp_path, monkeypatch) -> dict[str, object]:
    """The cluster's file as the page says to make it, in the folder one is in; its `launch`."""
    shipped = (ROOT / "launch" / "clusters" / "h100.yaml").read_text(encoding="utf-8")
    [added] = PAGE.blocks("yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / CLUSTER).write_text(shipped + added, encoding="utf-8")
    return yaml.safe_load(added)["launch"]


@pytest.mark.parametrize("words", [JOBS[0], JOBS[-1]], ids=lambda words: words[1])
@pytest.mark.usefixtures("forked_rehearsals")
def test_a_job_is_planned_rehearsed_and_written(words, written, dsv3):
    """Its line, printed and not submitted: nobody here has a Slurm."""
    done = dsv3(*dict.fromkeys([*words, "--dry-run"]))
    assert done.code == 0, done.err
    assert f"--partition={written['partition']}" in done.out
    for name, value in written["environment"].items():
        assert f"export {name}={value}" in done.out
    if "deepseek-v3" in words[1]:
        assert "#SBATCH --nodes=33" in done.out  # 256 ranks on nodes of 8, and a spare


def test_there_are_some():
    assert [words[1] for words in JOBS] == ["pretrain/deepseek-v3-256"] * 2 + ["pretrain/tiny"]


def test_its_sums_of_disk_and_of_reading_are_the_plans():
    cluster = load_cluster("h100")
    recipe = load_recipe("pretrain/deepseek-v3-256", [], cluster.machine)
    size = make_plan(recipe, cluster, cluster.machine).phases[-1].checkpoint_bytes
    times, export = recipe.checkpoint.keep + 1, 2 * parameter_counts(recipe.model).total
    tokens = 4 * 10**12
    text = " ".join(PAGE.text.split())
    assert f"Checkpoints {times} × {size / 1e12:.1f} TB" in text
    assert f"BF16 {export / 1e12:.1f} TB: {(times * size + tokens + export) / 1e12:.0f} TB" in text
    nodes = recipe.parallel.processes // cluster.gpus_per_node
    whole = nodes * cluster.storage_gb_per_second
    assert f"{size / whole / 1e9:.0f} seconds at {whole:.0f} GB/s ({nodes} nodes of " in text
    assert f"{time_text(size / 100e9)} at 100 GB/s, {size / 20e9 / 60:.0f} minutes at 20" in text
    minutes = recipe.parallel.timeout_minutes
    assert f"Below {size / 60 / minutes / 1e9:.0f} GB/s that is longer than" in text
    assert f"`parallel.timeout_minutes: {minutes:g}`" in text
    assert f"{recipe.model.vocab_size:,} ids do not fit into two" in text


def test_its_sentences_of_layout_and_time_are_the_plans():
    """That the recipe is the one a search takes first is test_long_lines' to see."""
    cluster = load_cluster("h100")

    def planned(name, *overrides):
        recipe = load_recipe(name, overrides, cluster.machine)
        return make_plan(recipe, cluster, cluster.machine)

    text = " ".join(PAGE.text.split())
    shipped = (ROOT / "recipes" / "pretrain" / "deepseek-v3-256.yaml").read_text(encoding="utf-8")
    said = " ".join(shipped.replace("\n#", "").split())
    plan = planned("pretrain/deepseek-v3-256")
    longest = plan.longest
    parts = longest.time_by_part
    step = longest.step_seconds - parts["saving"] - parts["evaluation"]
    assert f"a step takes {step:.0f} s" in said
    assert f"saving takes {parts['saving'] / longest.step_seconds:.1%}".replace("%", " %") in text
    assert f"{plan.seconds / 86400 / 7:.0f} weeks".replace("5", "five") in said
    hours = load_recipe("pretrain/deepseek-v3-256").checkpoint.interval * step / 3600
    assert round(2 * hours) == 5  # two and a half
    undivided = planned("pretrain/deepseek-v3-256", "parallel.tensor=1").limit
    needs = re.search(r"tensor 1 needs ([\d.]+ GB)", said)[1]
    assert not undivided.fits
    assert f"needs {needs} in a step" in undivided.sentence
    nearest = planned("pretrain/deepseek-v3", "parallel.processes=256", "parallel.expert=16").limit
    needs = re.search(r"what comes nearest needs ([\d.]+ GB)", text)[1]
    assert f"needs {needs} in a step" in nearest.sentence
