"""Measured steps, read from what a run left behind and from tables."""

import json
import re
from pathlib import Path

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.calibration.measured import read_measurements
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.shipped import shipped_folder

CPU = load_cluster("cpu")
TINY = load_recipe("pretrain/tiny")  # saves every 60 steps, evaluates every 40


def record(iteration: int, seconds: float | None, batch: int = 16) -> dict:
    line = {"iteration": iteration, "tokens": iteration * batch * 256, "batch_size": float(batch)}
    return line if seconds is None else line | {"step_seconds": seconds}


def run(folder: Path, records: list[dict], end: str = "\n") -> Path:
    """A run's metrics beside its recipe."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(TINY.to_yaml())
    path = folder / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, records)) + end)
    return path


def refusal(path: Path, recipe=None) -> str:
    with pytest.raises(UserError) as error:
        read_measurements(path, recipe, CPU)
    assert str(path) in str(error.value)
    return str(error.value)


def test_medians_of_each_batch_without_beginning_saves_and_evaluations(tmp_path):
    slow = {1: 9.0, 2: 8.0, 40: 5.0, 60: 7.0, 80: 5.0}
    records = [
        record(i, slow.get(i, 0.5 if i < 50 else 0.75), 8 if i < 50 else 16) for i in range(1, 90)
    ]
    records.insert(40, {"iteration": 40, "validation_loss": 2.0})
    path = run(tmp_path, records)
    found = read_measurements(path, None, CPU)
    assert [(row.batch, row.seconds, row.steps) for row in found.rows] == [
        (8, 0.5, 46),
        (16, 0.75, 38),
    ]
    assert all(row.recipe == TINY and row.cluster == CPU for row in found.rows)
    assert found.notes == ()
    assert read_measurements(tmp_path, None, CPU) == found  # the run's folder
    assert read_measurements(path, TINY, CPU) == found
    [of_another] = read_measurements(path, TINY.model_copy(update={"name": "big"}), CPU).notes
    assert of_another == (
        f"{path} has the steps of tiny, as recipe.yaml beside it says, and not of big: they tell "
        "of cpu as far as they were taken there"
    )


def test_a_run_cut_off_in_mid_line_says_so_and_its_whole_lines_count(tmp_path):
    records = [record(i, float(i)) for i in range(1, 12)]
    whole = read_measurements(run(tmp_path / "whole", records[:-1]), None, CPU)
    path = run(tmp_path / "cut", records, end="")
    path.write_bytes(path.read_bytes()[:-20])
    cut = read_measurements(path, None, CPU)
    assert [row.seconds for row in cut.rows] == [row.seconds for row in whole.rows] == [6.5]
    (note,) = cut.notes
    assert "its last line is cut off" in note
    assert "10 whole lines remain" in note


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([], "is empty"),
        ([record(i, None) for i in range(1, 20)], "no line of it says how long a step took"),
        ([record(i, 1.0) for i in range(1, 5)], "has 4 timed steps, and a median takes 3"),
        ([record(i, 0.0) for i in range(1, 20)], "no line of it says how long a step took"),
        ([record(i, float("nan")) for i in range(1, 20)], "no line of it says how long"),
        (
            [record(i, 1.0, batch=12) for i in range(1, 20)],
            "a step of 12 sequences is none of tiny",
        ),
    ],
)
def test_runs_that_say_too_little(records, sentence, tmp_path):
    path = run(tmp_path, records, end="\n" if records else "")
    assert sentence in refusal(path)


def test_a_cut_file_without_enough_whole_lines_gives_no_number(tmp_path):
    path = run(tmp_path, [record(1, 0.5)])
    path.write_bytes(path.read_bytes()[:40])
    assert "no line of it says how long a step took" in refusal(path)


def test_a_damaged_line_in_the_middle_is_no_cut(tmp_path):
    path = run(tmp_path, [record(i, 1.0) for i in range(1, 20)])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:6], lines[6][:15], *lines[7:]]) + "\n")
    assert "line 7 is no record, and others follow it" in refusal(path)


def test_whose_steps_they_are(tmp_path):
    path = run(tmp_path, [record(i, 1.0) for i in range(1, 20)])
    (tmp_path / "recipe.yaml").unlink()
    assert "no recipe.yaml lies beside it" in refusal(path)
    other = load_recipe("pretrain/tiny", ["training.micro_batch_size=2"])
    assert read_measurements(path, other, CPU).rows[0].recipe == other
    run(tmp_path, [record(i, 1.0) for i in range(1, 20)])
    assert read_measurements(path, other, CPU).rows[0].recipe == TINY  # the run's own, beside it


ROWS = """rows:
  - {name: first, recipe: pretrain/tiny, step_seconds: 0.5}
  - {recipe: pretrain/tiny, overrides: [curves.batch_size=8], tokens_per_second_per_gpu: 1024}
"""
CSV = """name,recipe,overrides,step_seconds,tokens_per_second_per_gpu
first,pretrain/tiny,,0.5,
,pretrain/tiny,curves.batch_size=8,,1024
"""


@pytest.mark.parametrize(("name", "text"), [("t.yaml", ROWS), ("t.csv", CSV)])
def test_tables(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    first, second = read_measurements(tmp_path / name, None, CPU).rows
    assert (first.name, first.batch, first.seconds) == ("first", 16, 0.5)
    assert second.name == "pretrain/tiny curves.batch_size=8"
    # 8 sequences of 256 tokens at 1024 tokens a second on each of two processes.
    assert (second.batch, second.seconds) == (8, 1.0)


def test_a_recipe_beside_the_table(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: pretrain/tiny\ntraining: {micro_batch_size: 2}\n")
    (tmp_path / "t.yaml").write_text("rows: [{recipe: mine.yaml, step_seconds: 1}]\n")
    (row,) = read_measurements(tmp_path / "t.yaml", None, CPU).rows
    assert row.recipe.training.micro_batch_size == 2


def test_a_cluster_beside_the_table_then_in_the_working_folder(tmp_path, monkeypatch):
    text = (shipped_folder("launch/clusters") / "cpu.yaml").read_text()
    table, here = tmp_path / "table", tmp_path / "here"
    for folder, price in ((table, 7), (here, 5)):
        folder.mkdir()
        changed = re.sub("(?m)^price_per_gpu_hour:.*", f"price_per_gpu_hour: {price}", text)
        (folder / "mine.yaml").write_text(changed)
    (table / "t.yaml").write_text(
        "rows: [{recipe: pretrain/tiny, cluster: mine.yaml, step_seconds: 1}]\n"
    )
    monkeypatch.chdir(here)
    for price in (7, 5):
        (row,) = read_measurements(table / "t.yaml", None, CPU).rows
        assert row.cluster.price_per_gpu_hour == price
        (table / "mine.yaml").unlink(missing_ok=True)
    (here / "mine.yaml").unlink()
    assert "mine.yaml: no such cluster file" in refusal(table / "t.yaml")


def test_rows_of_other_devices_are_left_out_and_named(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(
        ROWS + "  - {name: far, recipe: pretrain/tiny, cluster: h100, step_seconds: 1}\n"
    )
    found = read_measurements(path, None, CPU)
    assert [row.name for row in found.rows] == ["first", "pretrain/tiny curves.batch_size=8"]
    assert found.notes == (
        "'far' was measured on NVIDIA H100 SXM5 80GB, not on one x86-64 core with AVX-512, and is "
        "left out",
    )
    path.write_text("rows: [{recipe: pretrain/tiny, cluster: h100, step_seconds: 1}]\n")
    assert "none of its rows was measured on" in refusal(path)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("{recipe: pretrain/tiny}", "give either step_seconds or tokens_per_second_per_gpu"),
        ("{recipe: pretrain/tiny, step_seconds: 1, tokens_per_second_per_gpu: 1}", "give either"),
        ("{recipe: pretrain/tiny, step_seconds: 0}", "0 is no amount"),
        ("{recipe: pretrain/tiny, step_second: 1}", "unknown key"),
        ("{recipe: pretrain/tin, step_seconds: 1}", "row 1: 'pretrain/tin' is neither a file"),
        ("{recipe: pretrain/tiny, step_seconds: 1, batch: 9}", "a step of 9 sequences is none of"),
        ("{recipe: pretrain/tiny, step_seconds: 1, cluster: h10}", "nor a shipped cluster"),
        ("{recipe: pretrain/tiny, step_seconds: 1, overrides: [a=1]}", "unknown key 'a'"),
    ],
)
def test_rows_that_are_none(row, sentence, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(f"rows:\n  - {row}\n")
    assert sentence in refusal(path)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("t.yaml", "rows: []\n", "must have at least one item"),
        ("t.yaml", "", "the key 'rows' is missing"),
        ("t.csv", "", "holds no rows"),
        ("t.csv", "recipe,step_seconds\n", "holds no rows"),
        (
            "t.csv",
            "recipe,step_seconds\npretrain/tiny\n",
            "row 1: has other columns than the header",
        ),
        ("t.csv", "recipe,step_seconds\npretrain/tiny,1,2\n", "row 1: has other columns"),
        ("t.csv", 'recipe,step_seconds\n"pretrain/tiny,1\n', "is not CSV"),
        ("t.csv", "recipe,seconds\npretrain/tiny,1\n", "unknown key 'seconds'"),
        ("t.CSV", "recipe,step_seconds\n" + "pretrain/tiny,1\n" * 101, "101 rows, and 100 are"),
    ],
)
def test_tables_that_are_none(name, text, sentence, tmp_path):
    (tmp_path / name).write_text(text)
    assert sentence in refusal(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path):
    assert "no such file: calibrate from a run's metrics.jsonl" in refusal(tmp_path / "m.jsonl")
    assert "no such file" in refusal(tmp_path / "metrics.jsonl")


def test_what_was_measured_did_fit_whatever_the_planner_counts(tmp_path):
    (tmp_path / "t.yaml").write_text(
        "rows: [{recipe: pretrain/deepseek-v3, step_seconds: 20,\n"
        "        overrides: [pipeline.layout=balanced, 'recompute=[]']}]\n"
    )
    small = load_cluster("h800").model_copy(update={"memory_gb": 1.0})
    (row,) = read_measurements(tmp_path / "t.yaml", None, small).rows
    assert row.recipe.stage_layout
