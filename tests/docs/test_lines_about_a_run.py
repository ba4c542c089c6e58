"""Lines of the pages about runs, pasted where there are some, in the order of each page.

The small run stands for `runs/tiny` and all others. What needs nothing but what is shipped is
pasted in test_pages; what trains, launches or serves is left to the tests of that.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Said
from tests.docs.pages import PAGES, Page
from tests.small_runs import Trained

RUNS = ("tiny", "short", "tiny-sft", "deepseek-v3-256")
VERBS = (
    "balance", "data", "diff", "doctor", "eval", "export", "generate", "import", "init", "inspect",
    "logits", "logs", "model", "plot", "runs", "status", "verify",
)  # fmt: skip
STANDS_FOR = {
    "A": "exported", "B": "runs/tiny", "CHECKPOINT": "runs/tiny", "FILE": "cpu",
    "HF_DIR": "exported", "PATH": "runs/tiny", "RUN": "runs/tiny",
}  # fmt: skip
"""What a person writes for a word in capitals."""


def is_pasted(words: list[str]) -> bool:
    """Whether a line is one of these."""
    if {"4096", "my-h100.yaml"} & {*words}:  # takes its time; is a node of GPUs
        return False
    return words[0] in VERBS or words[:2] == ["args", "CHECKPOINT"]


def written(words: list[str]) -> list[str]:
    """A line as a person writes it who has these runs."""
    names = dict(STANDS_FOR)
    if "--bytes" in words:
        names |= {"A": "runs/tiny", "B": "runs/short"}
    if words[0] in ("import", "export"):
        names[words[2]] = words[2].lower()
    said = [names.get(word, word) for word in words if word != "-f"]  # for as long as it runs
    more = {
        "needle": ["model.max_position_embeddings=1024"],  # the small run has fewer, and says so
        # Before there is a run, as the page has it; of few texts a larger share.
        "prepare": ["directory=runs/prepared", "data.held_out=0.3"],
    }
    return said + more.get(said[1] if said[1:] else "", [])


LINES = {
    page: lines
    for page in PAGES
    if (lines := [words for words in page.commands() if is_pasted(words)])
}


@pytest.fixture
def among_runs(
    trained: Trained, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be in a folder with runs, and with what else the lines name."""
    monkeypatch.chdir(tmp_path)
    for name in RUNS:
        shutil.copytree(trained.folder, Path("runs", name))
    for name in ("exported", "tokenizer"):
        shutil.copytree(exported, name)
    for name in ("corpus", "texts"):
        shutil.copytree(trained.recipe.with_name("corpus"), name)
    shutil.copy(exported / "config.json", "config.json")
    np.save("tokens.npy", np.array([[1, 2, 3]]))


@pytest.mark.parametrize("page", LINES, ids=lambda page: page.name)
@pytest.mark.usefixtures("among_runs")
def test_a_line_does_what_it_says(page: Page, dsv3: Callable[..., Said]) -> None:
    failed = {}
    for words in LINES[page]:
        said = dsv3(*written(words))
        if said.code:
            failed[" ".join(words)] = said.err
    assert not failed
