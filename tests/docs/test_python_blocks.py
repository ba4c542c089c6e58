"""Blocks of Python on the pages of conversion and generation run, on the small model.

docs/python.md has a test of its own, and so have pages that add code; what asks a server is run
where there is one, in tests/rollouts.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.distributed.world import single_process
from tests.docs.pages import PAGES, ROOT, Page
from tests.docs.test_every_line import ADDING
from tests.small_runs import Trained

CONVERSION, GENERATION = (
    Page(ROOT / "docs" / f"{name}.md") for name in ("conversion", "generation")
)


@pytest.fixture
def model(trained: Trained) -> Iterator[Any]:
    with single_process(seed=1):
        yield load_for_inference(trained.checkpoints)[0]


def test_the_engine_answers(model: Any) -> None:
    alone, among_ranks, _ = GENERATION.blocks("python")
    names = {"model": model}
    exec(alone.replace("2**30", "2**24"), names)
    assert len(names["answer"].tokens) <= 100
    assert len(names["answer"].log_probs) == len(names["answer"].tokens)
    names["requests"] = [names["request"]]
    exec(among_ranks, names)
    assert not names["engine"].busy_anywhere()


def test_a_folder_is_converted_and_back(
    model: Any, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, "DeepSeek-V2-Lite")
    [code] = CONVERSION.blocks("python")
    names = {"model": model}
    exec(code, names)
    assert Path("exported", "config.json").exists()
    assert names["tensor"].numel()


def test_no_other_page_has_some() -> None:
    pages = {page.name for page in PAGES if page.blocks("python")} - {*ADDING, "docs/python.md"}
    assert pages == {CONVERSION.name, GENERATION.name}
