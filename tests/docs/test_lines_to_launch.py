"""Lines of `dsv3 launch`, each in a folder with what it names, and what stands for Slurm.

That a configuration is rehearsed before, as it is for the jobs of one page in test_zero_to_256, is
left out here: it costs a process that imports torch.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dsv3_plugin.launch import submit
from tests.conftest import Said
from tests.docs.pages import PAGES, ROOT, Page
from tests.launch.jobs import write_cluster, write_slurm

PRINTED = ("--dry-run", "--kubernetes", "--skypilot", "--torchrun")
IMAGE = {"container": {"runtime": "pyxis", "image": "registry.example/dsv3:0.2"}}
[LAUNCH] = Page(ROOT / "docs" / "launch.md").blocks("yaml")
"""How that page has jobs started, whichever page a line is on."""


def is_pasted(words: list[str]) -> bool:
    """Whether a line is one of these."""
    return words[0] == "launch"


LINES = [(page, words) for page in PAGES for words in page.commands() if is_pasted(words)]


def written(words: list[str]) -> tuple[list[str], str | None]:
    """A line as a person writes it, and the file that what it prints goes to."""
    recipe = "extend/tiny-1k" if "--after" in words else "pretrain/tiny"
    names = {"RECIPE": recipe, "FILE": "two.yaml", "RUN": "runs/tiny"}
    said = [names.get(word, word) for word in words]
    if ">" not in said:
        return said, None
    *said, _, file = said
    return said, file


@pytest.fixture
def login_node(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    """A folder with texts, a tokenizer and the clusters' files, on a machine with a Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submit, "refuse_what_upstream_would", lambda *_: None)
    for name in ("corpus/text.txt", "tokenizer/tokenizer.json"):
        Path(name).parent.mkdir()
        Path(name).write_text("{}", encoding="utf-8")
    write_cluster(tmp_path, yaml.safe_load(LAUNCH)["launch"])
    shipped = (ROOT / "launch" / "clusters" / "h100.yaml").read_text(encoding="utf-8")
    [more] = Page(ROOT / "docs" / "zero-to-256.md").blocks("yaml")
    Path("my-h100.yaml").write_text(shipped + more, encoding="utf-8")
    slurm = tmp_path_factory.mktemp("slurm")
    write_slurm(slurm, queue="12|PENDING|Priority|0|1:00:00||")
    monkeypatch.setenv("PATH", f"{slurm}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("page", "words"),
    [pytest.param(*line, id=f"{line[0].name}: {' '.join(line[1])}") for line in LINES],
)
@pytest.mark.usefixtures("login_node")
def test_a_line_launches_what_it_says(
    page: Page, words: list[str], dsv3: Callable[..., Said], tmp_path: Path
) -> None:
    said, file = written(words)
    if "--after" in said:  # that run waits in the queue
        assert dsv3("launch", "pretrain/tiny", "--cluster", "two.yaml").code == 0
    if {"--kubernetes", "--skypilot"} & {*said}:
        write_cluster(tmp_path, IMAGE)
    before = {*tmp_path.rglob("*")}
    done = dsv3(*said)
    assert done.code == 0, done.err
    if any(option in said for option in PRINTED):
        assert {*tmp_path.rglob("*")} == before
        shown = yaml.safe_load(done.out) if file else done.out.startswith("#!/bin/bash")
        assert shown
    else:
        assert done.out.startswith("Job 12"), done.out
        [script] = {*tmp_path.rglob("*.sbatch")} - before
        partition = "#SBATCH --partition=batch\n" in script.read_text(encoding="utf-8")
        assert partition is ("h800" not in said)  # that ships, and says none
