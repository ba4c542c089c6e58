"""`dsv3 plan --search`: what it prints, what it writes, and what does not go with it."""

import json

import pytest

from dsv3_plugin.cli import plan_search
from dsv3_plugin.cli.plan_cases import Asked, Conditions, Run
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.recipe.load import load_recipe

SMALL = ("pretrain/tiny", "parallel.processes=4", "training.micro_batch_size=2")


def test_the_best_way_is_written_as_a_recipe_that_trains_as_it_is(dsv3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = dsv3("plan", *SMALL, "--search", "--write", "best.yaml")
    assert said.code == 0, said.err
    assert "ways to run it on cpu were looked at" in said.out
    assert "1 is taken for these reasons" in said.out
    assert said.out.endswith("best.yaml is the first of them: dsv3 train best.yaml\n")
    text = (tmp_path / "best.yaml").read_text(encoding="utf-8")
    assert text.startswith("# tensor ")
    assert "\nbase: pretrain/tiny\n" in text
    recipe = load_recipe("best.yaml", machine=load_cluster("cpu").machine)
    assert (recipe.name, recipe.directory) == ("best", "runs/best")
    given = load_recipe(SMALL[0], SMALL[1:])
    for kept in ("model", "data", "curve_specs", "optimizer", "checkpoint"):
        assert getattr(recipe, kept) == getattr(given, kept)
    told = json.loads(dsv3("plan", *SMALL, "--search", "--json").out)
    best = told["search"]["candidates"][0]
    planned = json.loads(dsv3("plan", "best.yaml", "--json").out)
    times = planned["phases"][-1]["time_by_part"]
    besides = times.get("saving", 0) + times.get("evaluation", 0)
    step = planned["phases"][-1]["step_seconds"] - besides
    assert step == pytest.approx(best["step_seconds"])
    assert [*told][-4:] == ["cluster", "imbalance", "processes", "search"]


@pytest.mark.parametrize(
    ("overrides", "cluster", "line"),
    [
        ((), "h100", "launch a.yaml --cluster h100 directory=runs/big"),
        ((), "cpu", "train a.yaml directory=runs/big"),
        (("directory=runs/other",), "my own.yaml", "launch a.yaml --cluster 'my own.yaml'"),
    ],
)
def test_the_line_that_trains_it_names_the_cluster_and_the_run_it_goes_on_with(
    overrides, cluster, line, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "runs" / "big" / "recipe.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text("base: pretrain/tiny\n")
    (tmp_path / "my own.yaml").write_text(load_cluster("h100").model_dump_json())
    here = Machine(gpus=0, transformer_engine=False)
    monkeypatch.setattr(Machine, "here", lambda: here)
    asked = Asked("runs/big/recipe.yaml", overrides)
    conditions = Conditions(cluster, None, None, None, drawn=False)
    run = Run(load_recipe("pretrain/tiny"), load_cluster(cluster), here, 1.0, None)
    assert plan_search.line_of("a.yaml", asked, conditions, run) == f"dsv3 {line}"


def test_a_cluster_that_was_named_is_the_recipes(dsv3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = load_cluster("cpu").model_dump_json()
    (tmp_path / "mine.yaml").write_text(shipped)
    for named, kept in (("cpu", "cpu"), ("mine.yaml", str(tmp_path / "mine.yaml"))):
        words = ("pretrain/tiny", "directory=elsewhere", "--cluster", named)
        said = dsv3("plan", *words, "--search", "--write", f"for-{named.partition('.')[0]}.yml")
        assert said.code == 0, said.err
        recipe = load_recipe(f"for-{named.partition('.')[0]}.yml")
        assert (recipe.cluster, recipe.directory) == (kept, "elsewhere")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("deepseek-v3 --search", "--search plans a recipe, such as pretrain/deepseek-v3"),
        ("pretrain/tiny --write a.yaml", "--write writes what --search finds: add --search"),
        ("pretrain/tiny --search --write a.json", "a .yaml file; a.json does not end so"),
        ("pretrain/tiny --search --write there.yaml", "there.yaml is there already"),
        ("pretrain/tiny --search --write no/a.yaml", "cannot write no/a.yaml: its folder is not"),
        ("pretrain/tiny --search --ranks", "--ranks does not go with --search"),
        ("pretrain/tiny --search --compare", "--compare does not go with --search"),
        ("pretrain/tiny --search --html a.html", "--html does not go with --search"),
        ("pretrain/tiny --search --seq-length 9", "--seq-length does not go with --search"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(dsv3, words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("kept")
    said = dsv3("plan", *words.split())
    assert (said.code, said.err.count("\n"), said.out) == (2, 1, "")
    assert sentence in said.err
    assert [file.read_text() for file in tmp_path.iterdir()] == ["kept"]
