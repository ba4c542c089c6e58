"""docs/adding-a-schedule.md, done as it says: one file, one row, and everything knows the schedule.

It happens in a copy of the package, so that what reads the registry at import time reads the row.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gloo_ranks import run_ranks
from tests.pipeline.executed import all_schedules, must_be_of_one_process, references

HERE = Path(__file__).parents[2]
PAGE = HERE / "docs" / "adding-a-schedule.md"


def blocks(language: str) -> list[str]:
    """The page's blocks of code in a language; "" for those of commands."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return [code for said, code in fenced if said == language]


def patched(text: str, diff: str) -> str:
    """`text` with the lines that a block adds, where its other lines stand."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] == " ")
    assert text.count(before) == 1
    return text.replace(before, "".join(line[1:] for line in lines))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, and in it what the page adds."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("dsv3_plugin", "recipes"):
        shutil.copytree(HERE / part, folder / part, ignore=ignored)
    (name,) = re.findall(r"^`(dsv3_plugin/schedules/\w+\.py)`:$", PAGE.read_text(), re.MULTILINE)
    (code,) = blocks("python")
    assert not (folder / name).exists()
    (folder / name).write_text(code)
    registry = folder / "dsv3_plugin" / "schedules" / "registry.py"
    text = registry.read_text()
    for diff in blocks("diff"):
        text = patched(text, diff)
    registry.write_text(text)
    return folder


def run(copy: Path, *command: str) -> str:
    """What a command of Python prints, the copy being the package that is imported."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=copy,
        env={"PYTHONPATH": f"{copy}:{HERE}", "PATH": "/usr/bin:/bin", "HOME": str(copy)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_it_is_timed_drawn_written_and_proven(copy):
    commands = [line.split() for line in blocks("")[0].splitlines()]
    (make,) = (words for words in commands if words[:3] == ["dsv3", "schedule", "gpipe"])
    answer = json.loads(run(copy, "-m", "dsv3_plugin.cli", *make[1:], "--json"))
    # (M + P - 1)(F + B), and all M micro-batches held.
    assert answer["makespan"] == (8 + 4 - 1) * 3
    assert answer["peak_activations"] == [8] * 4
    assert (copy / "gpipe.png").stat().st_size > 1000
    (prove,) = (words for words in commands if "--from-csv" in words)
    again = json.loads(run(copy, "-m", "dsv3_plugin.cli", *prove[1:], "--json"))
    assert again == answer
    assert "gpipe" in run(copy, "-m", "dsv3_plugin.cli", "schedule", "--help")


def test_recipes_know_it(copy):
    (train,) = (line.split() for line in blocks("")[0].splitlines() if "train" in line)
    code = (
        "import sys\n"
        "from dsv3_plugin.planner.recipe_schedules import schedules_of\n"
        "from dsv3_plugin.recipe.load import load_recipe\n"
        "from dsv3_plugin.schedules.validate import validate\n"
        "recipe = load_recipe(sys.argv[1], sys.argv[2:])\n"
        "print(recipe.executor, recipe.pipeline_stages, recipe.micro_batches_together)\n"
        "for _, batch in recipe.batch_schedule.entries:\n"
        "    schedule = schedules_of(recipe)(batch // recipe.training.micro_batch_size)\n"
        "    validate(schedule)\n"
        "    print(schedule.name)\n"
    )
    facts, *names = run(copy, "-c", code, *train[2:]).splitlines()
    assert facts == "ours 2 1"
    assert {*names} == {"gpipe"}
    ramp = ["pipeline.schedule=zb1p", "pipeline.ramp_schedule=gpipe", *train[4:]]
    run(copy, "-c", code, "pretrain/tiny", *ramp)
    unknown = subprocess.run(
        [sys.executable, "-m", "dsv3_plugin.cli", "args", "pretrain/tiny", "pipeline.schedule=x"],
        cwd=copy,
        env={"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert re.search(r"'x' is unknown; it is one of .*gpipe", unknown.stderr)


def test_the_table_and_the_tests_of_every_row_have_it(copy):
    table = str(HERE / "benchmarks" / "schedule_table.py")
    printed = run(copy, table, "--pp", "4", "--micro-batches", "8", "--no-search")
    rows = json.loads(printed.splitlines()[-1])["rows"]
    assert {row["schedule"]: row["peak_activations"] for row in rows}["gpipe"] == 8
    tests = str(HERE / "tests" / "schedules" / "test_registry.py")
    # The configuration would put the package that was copied before the copy.
    options = ["-q", "-k", "gpipe", "-p", "no:cacheprovider", "-o", "pythonpath=", "--noconftest"]
    options += ["--hypothesis-profile", "ci"]  # without deadlines, as the project's own
    said = run(copy, "-m", "pytest", *options, tests)
    assert re.search(r"\b[5-9] passed", said)


def test_real_ranks_compute_the_step_of_one_process(tmp_path):
    names: dict[str, Any] = {}
    exec(blocks("python")[0], names)
    schedule = names["gpipe"](2, 3)
    [reference] = run_ranks(1, references, [schedule], scratch=tmp_path)
    ranks = run_ranks(2, all_schedules, [schedule], scratch=tmp_path, timeout_s=120)
    must_be_of_one_process([schedule], reference, ranks, losses=1e-6, gradients=1e-5)
    assert [answers[0][2] for answers in ranks] == [3, 3]  # the peak
