"""docs/zero-to-256.md: its jobs can be launched with the cluster's file that it shows."""

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
