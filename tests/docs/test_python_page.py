"""docs/python.md: its cells run, and print what stands behind them."""

import contextlib
import inspect
import io
import re
from multiprocessing.connection import Connection

import pytest

from dsv3_plugin.launch import supervise
from dsv3_plugin.model import SPEC
from dsv3_plugin.recipe.load import load_recipe
from tests.docs.pages import ROOT, Page
from tests.forked import answer_of


def cells() -> list[tuple[str, list[str]]]:
    """The code of each cell, and the lines that it prints."""
    found = []
    for block in Page(ROOT / "docs" / "python.md").blocks("python"):
        lines = block.splitlines()
        printed = [line.removeprefix("# → ") for line in lines if line.startswith("# → ")]
        found.append(("\n".join(line for line in lines if not line.startswith("# → ")), printed))
    return found


def run_cells(folder: str, said_to: Connection) -> None:
    """Run them in a folder, one after another, and send what each prints."""
    names: dict[str, object] = {}
    said = []
    with contextlib.chdir(folder):
        for code, _ in cells():
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(code, names)
            said.append(out.getvalue().splitlines())
    said_to.send(said)


def test_cells_print_what_the_page_says(tmp_path):
    said = answer_of(run_cells, str(tmp_path))
    for (code, expected), lines in zip(cells(), said, strict=True):
        patterns = [".*".join(map(re.escape, line.split("…"))) for line in expected]
        assert len(lines) == len(patterns), code
        for line, pattern in zip(lines, patterns, strict=True):
            assert re.fullmatch(pattern, line), (code, line)
    assert (tmp_path / "dualpipe_v.png").read_bytes().startswith(b"\x89PNG")


def test_its_run_is_begun_as_the_function_takes_it(monkeypatch: pytest.MonkeyPatch):
    """Trained in minutes, it is not: its recipe is read."""
    [code] = Page(ROOT / "docs" / "python.md").blocks("text")
    taken, steps = inspect.signature(supervise.train), []

    def train(*given: object, **more: object) -> None:
        name, overrides, *_ = taken.bind(*given, **more).args
        steps.append(load_recipe(name, overrides).training.steps)

    monkeypatch.setattr(supervise, "train", train)
    exec(code, {})
    assert steps == [120]


def test_the_spec_of_the_readme_is_ours():
    blocks = Page(ROOT / "README.md").blocks("text")
    [line] = (line for block in blocks for line in block.splitlines() if "--spec" in line)
    assert line.partition(" #")[0].split() == ["--spec", *SPEC]
