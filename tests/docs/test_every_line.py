"""Every line that can be pasted is pasted by a test, or stands here with the reason why not."""

import re
import shlex
from collections.abc import Callable, Iterator

import pytest

from tests.docs import (
    test_lines_about_a_run,
    test_lines_to_launch,
    test_long_lines,
    test_pages,
    to_servers,
)
from tests.docs.pages import PAGES, ROOT, Page
from tests.docs.transcripts import transcripts

Words = list[str]

ELSEWHERE = {
    "serve --checkpoint runs/tiny --port 8000": "tests/rollouts/test_openai.py",
    "serve --checkpoint runs/tuned/checkpoints --weights-root runs":
        "tests/rollouts/test_openai.py",
    "distill problems.jsonl --from http://127.0.0.1:8000 --n 8 --out samples.jsonl":
        "tests/rollouts/test_openai.py",
    "distill problems.jsonl --from URL --out samples.jsonl": "tests/rollouts/test_openai.py",
    "curl http://127.0.0.1:8000/v1/completions": "tests/rollouts/test_openai.py",
    'curl -H "Authorization: Bearer $DSV3_API_KEY"': "tests/rollouts/test_openai.py",
}  # fmt: skip
"""How lines begin that a test pastes which has what they need, and that test."""

ADDING = {
    "docs/adding-a-hook.md": "tests/training/test_hooks.py",
    "docs/adding-a-model.md": "tests/docs/test_adding_a_model.py",
    "docs/adding-a-schedule.md": "tests/schedules/test_adding_a_schedule.py",
    "docs/adding-a-stage.md": "tests/stages/test_adding_a_stage.py",
}
"""Pages that a test does from their beginning to their end, with less to train on."""

BY_HAND = {
    r"rehearse pretrain/deepseek-v3( --ranks .*)?": "minutes of two cores; a rank of it is "
    "rehearsed in tests/rehearsal/test_step.py",
    r"rehearse rl/deepseek-\S+": "a rank takes longer than all of pretrain/tiny",
    r"train rl/tiny": "three minutes: it makes its parents first, as tests/training/test_parent.py "
    "and tests/stages/test_rl.py do in small",
    r"eval harness .*": "another environment's: `make test-harness` asks its tasks",
    r"lm_eval run .*": "likewise",
    r"srun --nodes 32 .*": "Slurm's, of 32 nodes: what limits there are",
    r"git clone .*": "the network's",
    r"pip install .*": "the network's; `make test-wheel` installs the wheel",
    r"make demo": "what README begins with, minutes: by hand before a release",
    r"make test": "it is what runs this",
    r"python benchmarks/.*": "measurements: test_pages looks that each takes its options",
}
"""Lines that no test pastes, and why."""

PASTED: tuple[Callable[[Words], bool], ...] = (
    test_pages.runs_at_once,
    test_lines_about_a_run.is_pasted,
    test_lines_to_launch.is_pasted,
    test_long_lines.is_searched,
    test_long_lines.is_rehearsed,
    test_long_lines.is_trained,
)
_PROGRAMS = r"(?:curl|git|lm_eval|make|pip|pytest|python|srun|sky|kubectl|tail) .*"


def lines_of(page: Page) -> Iterator[str]:
    """What a person may paste: every `dsv3`, and other programs' lines, in blocks of any kind."""
    for words in page.commands():
        yield " ".join(words)
    others = [*page.shell_lines, *"".join(page.blocks("text")).splitlines()]
    others += [line[4:] for line in page.prose.splitlines() if line.startswith("    ")]
    for line in others:
        if re.fullmatch(_PROGRAMS, line) and "dsv3_plugin.cli" not in line and " dsv3 " not in line:
            yield line


def ways(line: str) -> list[str]:
    """Each way in which a line is pasted, or why it is not."""
    words = line.split()
    found = [by.__module__ for by in PASTED if by(words)]
    found += [test for start, test in ELSEWHERE.items() if line.startswith(start)]
    return found + [why for lines, why in BY_HAND.items() if re.fullmatch(lines, line)]


SHOWN = {
    " ".join(shlex.split(command)[1:]) for page in PAGES for command, _ in transcripts(page.text)
}
LINES = [(page, line) for page in PAGES if page.name not in ADDING for line in lines_of(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_line_is_pasted_or_has_its_reason(page: Page) -> None:
    counted = {line: ways(line) for of, line in LINES if of is page and line not in SHOWN}
    assert not {line: found for line, found in counted.items() if len(found) != 1}


def test_tables_have_nothing_that_is_on_no_page() -> None:
    for start in ELSEWHERE:
        assert any(line.startswith(start) for _, line in LINES), start
    for lines in BY_HAND:
        assert any(re.fullmatch(lines, line) for _, line in LINES), lines
    for name, test in ADDING.items():
        source = (ROOT / test).read_text(encoding="utf-8")
        assert name.removeprefix("docs/") in source
    for test in {*ELSEWHERE.values()}:
        assert to_servers.__name__.rpartition(".")[2] in (ROOT / test).read_text(encoding="utf-8")
