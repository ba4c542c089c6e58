"""`dsv3 runs`, `dsv3 diff` and `dsv3 plot`."""

import json

import pytest

from dsv3_plugin.launch.job_record import JobRecord, write_record
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.shipped import shipped_folder
from tests.report.test_losses import STEPS, write_run


@pytest.fixture
def two(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return [write_run(tmp_path / "runs" / name, slope) for name, slope in (("a", 10), ("b", 20))]


def test_runs_are_listed(dsv3, two):
    said = dsv3("runs")
    assert said.code == 0
    assert [line.split()[:3] for line in said.out.splitlines()[1:]] == [
        ["runs/a", "pretrain", "stopped"],
        ["runs/b", "pretrain", "stopped"],
    ]
    lines = [json.loads(line) for line in dsv3("runs", "runs", "--json").out.splitlines()]
    assert [line["folder"] for line in lines] == ["runs/a", "runs/b"]
    assert lines[0]["step"] == STEPS
    assert lines[0]["saved_step"] == 0
    assert said.out.splitlines()[1].split()[3:5] == [f"{STEPS:,}/{lines[0]['steps']:,}", "never"]
    assert lines[0]["held_out_loss"] == 2.5
    assert lines[0]["tokens_per_second"] == 120.5
    (alone,) = dsv3("runs", "runs/b", "--json").out.splitlines()
    assert json.loads(alone) == lines[1]
    assert dsv3("runs", ".", "--json").out == dsv3("runs", "--json").out


def test_where_no_runs_are_that_is_a_sentence(dsv3, two):
    two[0].root.joinpath("data").mkdir()
    way_out = "name a folder of runs, or of one; dsv3 runs, alone, lists those in runs/."
    for folder, why in (
        ("nowhere", "does not exist"),
        ("runs/aa", "does not exist (nearest: 'runs/a')"),
        ("runs/a/data", "holds no run"),
        ("runs/a/metrics.jsonl", "is a file"),
    ):
        said = dsv3("runs", folder)
        assert (said.code, said.err) == (2, f"dsv3: {folder} {why}: {way_out}\n")


def test_of_an_empty_folder_of_runs_the_way_to_one_is_said(dsv3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert dsv3("runs").err == (
        "dsv3: there are no runs yet, which lie in runs/: dsv3 train pretrain/tiny makes one.\n"
    )


def test_runs_and_recipes_differ_in(dsv3, two):
    recipe = two[1].recipe
    recipe.write_text(recipe.read_text().replace("  seed: 1234", "  seed: 7", 1))
    said = dsv3("diff", "runs/a", "runs/b")
    assert said.code == 0
    assert "training.seed: 1234 → 7\n" in said.out
    assert f"At {STEPS}K tokens: loss 2.1465 → 3.0827 (+0.9362)." in said.out
    found = json.loads(dsv3("diff", "runs/a", "runs/b/", "--json").out)
    assert found["keys"] == [{"key": "training.seed", "a": 1234, "b": 7}]
    assert [run["step"] for run in found["losses"]] == [STEPS, STEPS]
    assert dsv3("diff", "pretrain/tiny", "runs/a").out.startswith("The recipes are the same")


def test_a_run_is_compared_and_drawn_by_its_jobs_number(dsv3, two):
    write_record(two[0], JobRecord("12", "cpu", "none", 0.0))
    assert dsv3("diff", "12", "runs/b").out == dsv3("diff", "runs/a", "runs/b").out
    assert dsv3("plot", "12").out == dsv3("plot", "runs/a").out
    for words in (("diff", "13", "runs/b"), ("plot", "13"), ("balance", "13")):
        said = dsv3(*words)
        assert (said.code, "no run in runs/ was launched as job 13" in said.err) == (2, True)


def test_of_the_clusters_of_runs_what_differs_stands_apart(dsv3, two, tmp_path):
    """A run that was launched has its own copy of the cluster's file."""
    shipped = yaml_text.read_mapping(shipped_folder("launch/clusters") / "h100.yaml")
    for run, price in zip(two, (2.5, 3.5), strict=True):
        run.launch.mkdir()
        copy = run.launch / "cluster.yaml"
        copy.write_text(yaml_text.dump({"name": "mine"} | shipped | {"price_per_gpu_hour": price}))
        recipe = load_recipe("pretrain/tiny", [f"directory={run.root}", f"cluster={copy}"])
        run.recipe.write_text(recipe.to_yaml())
    assert dsv3("diff", "runs/a", "runs/b").out.splitlines()[:4] == [
        "The recipes are the same in all keys but their names and folders.",
        "",
        "The clusters that they are planned for:",
        "price_per_gpu_hour: 2.5 → 3.5",
    ]
    found = json.loads(dsv3("diff", "runs/a", "runs/b", "--json").out)
    assert (found["keys"], found["cluster"]) == (
        [],
        [{"key": "price_per_gpu_hour", "a": 2.5, "b": 3.5}],
    )
    (two[0].launch / "cluster.yaml").write_text((two[1].launch / "cluster.yaml").read_text())
    assert "cluster" not in dsv3("diff", "runs/a", "runs/b").out
    assert "planned for:\ncluster:" in dsv3("diff", "pretrain/tiny", "runs/b").out


def test_stages_have_keys_of_their_own(dsv3):
    found = json.loads(dsv3("diff", "pretrain/tiny", "extend/tiny-1k", "--json").out)
    by_key = {one["key"]: one for one in found["keys"]}
    assert by_key["from"] == {"key": "from", "b": "runs/tiny"}
    assert by_key["stage"] == {"key": "stage", "a": "pretrain", "b": "extend"}
    assert found["losses"] == [None, None]


def test_runs_are_plotted(dsv3, two, tmp_path):
    said = dsv3("plot", "runs/a", "runs/b")
    assert said.code == 0
    assert "⡇" in said.out
    assert said.out.splitlines()[-2:] == [
        f"a  a: step {STEPS}, {STEPS}K tokens, loss 2.1465, held out 2.5000",
        f"b  b: step {STEPS}, {STEPS}K tokens, loss 3.0827, held out 2.5000",
    ]
    drawn = dsv3("plot", "runs/a", "--png", "a.png")
    assert (drawn.code, drawn.out) == (0, "wrote the losses of 1 run into a.png.\n")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert dsv3("plot", "runs").code == 2


@pytest.mark.parametrize("verb", ["plot", "balance"])
@pytest.mark.parametrize("name", ["b.txt", "b"])
def test_a_picture_is_a_png(dsv3, two, verb, name):
    said = dsv3(verb, "runs/a", "--png", name)
    assert (said.code, said.err) == (2, f"dsv3: --png writes .png files; {name} does not end so.\n")


def test_before_any_run_it_is_said_what_makes_one(dsv3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = dsv3("runs")
    assert said.code == 2
    assert "there are no runs yet, which lie in runs/: dsv3 train pretrain/tiny makes" in said.err
