"""Lines of the pages about runs, pasted where there are some, in the order of each page.

The small run stands for `runs/tiny` and all others. What needs nothing but what is shipped is
pasted in test_pages; what trains, launches or serves is left to the tests of that.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsv3_plugin.recipe.load import load_recipe
from tests.conftest import Said
from tests.docs.pages import PAGES, ROOT, Page
from tests.small_runs import Trained

RUNS = ("tiny", "short", "tiny-sft", "deepseek-v3-256")
VERBS = (
    "balance", "data", "diff", "doctor", "eval", "export", "generate", "import", "init", "inspect",
    "logits", "logs", "model", "plot", "runs", "status", "verify",
)  # fmt: skip
STANDS_FOR = {
    "A": "exported", "B": "runs/tiny", "CHECKPOINT": "runs/tiny", "FILE": "cpu",
    "HF_DIR": "exported", "METRICS": "planned/metrics.jsonl", "PATH": "runs/tiny",
    "RUN": "runs/tiny", "TABLE": "table.yaml",
    "my-h100.yaml": "cpu", "runs/tiny-4k": "runs/tiny",
}  # fmt: skip
"""What a person writes for a word in capitals; and what is here of what is not."""
[TABLE] = Page(ROOT / "docs" / "planner.md").blocks("yaml")
PROBLEMS = Page(ROOT / "docs" / "distillation.md").blocks("json")[0].splitlines()


def is_pasted(words: list[str]) -> bool:
    """Whether a line is one of these."""
    if words[0] == "distill":
        return "runs/tiny/checkpoints" in words  # the other's teacher is a server
    if words[:2] == ["eval", "harness"]:  # another's program
        return False
    begins = (["args", "CHECKPOINT"], ["plan", "RECIPE"], ["schedule", "search"])
    return words[0] in VERBS or words[:2] in begins or words[1:] == ["--from-csv", "mine.csv"]


def written(words: list[str]) -> list[str]:
    """A line as a person writes it who has these runs."""
    names = dict(STANDS_FOR)
    if "--bytes" in words:
        names |= {"A": "runs/tiny", "B": "runs/short"}
    if words[0] == "plan":
        names["RECIPE"] = "pretrain/deepseek-v3" if "TABLE" in words else "planned/recipe.yaml"
    if "needle" in words:
        names["4096"] = "256"  # texts of so many tokens take minutes
    if words[0] in ("import", "export"):
        names[words[2]] = words[2].lower()
    said = [names.get(word, word) for word in words if word != "-f"]  # for as long as it runs
    more = {
        # The small run has fewer positions, and says so.
        "needle": ["model.max_position_embeddings=1024"],
        # Before there is a run, as the page has it; of few texts a larger share.
        "search": ["--effort", "0.01"],  # of half a minute
        "prepare": ["directory=runs/prepared", "data.held_out=0.3"],
    }
    return said + more.get(said[1] if said[1:] else "", [])


LINES = {
    page: lines
    for page in PAGES
    if (lines := [words for words in page.commands() if is_pasted(words)])
}


def write_planned(folder: Path) -> None:
    """A recipe that nothing has run, and steps as long as if something had."""
    folder.mkdir()
    recipe = load_recipe("pretrain/tiny", ["directory=runs/planned"])
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    step = {"batch_size": 16.0, "step_seconds": 1.0}
    lines = [{"iteration": i, "tokens": i * 16 * 256, **step} for i in range(1, 40)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


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
    write_planned(Path("planned"))
    Path("table.yaml").write_text(TABLE, encoding="utf-8")
    # The second needs a sandbox, which is not everywhere.
    Path("problems.jsonl").write_text("\n".join([PROBLEMS[0], PROBLEMS[2]]), encoding="utf-8")
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
