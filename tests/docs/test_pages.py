"""What README and docs/ point at exists: pages, headings, files, verbs and their options."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from dsv3_plugin.cli.command import app
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.schedules.registry import SCHEDULES
from tests.docs.pages import PAGES, ROOT, Page
from tests.docs.transcripts import transcripts

VERBS = typer.main.get_command(app)
CHANGELOG = Page(ROOT / "CHANGELOG.md")
COMMANDS = [(page, command) for page in PAGES for command in page.commands()]


def takes_long(command: list[str]) -> bool:
    """Whether a command looks for the best way of running what no laptop runs, or rehearses it."""
    searches = command[0] == "plan" and "--search" in command
    return (searches or command[0] == "rehearse") and "pretrain/tiny" not in command


def each(
    commands: list[tuple[Page, list[str]]], long: Callable[[list[str]], bool] = lambda words: False
) -> Any:
    """A test for each command, by the page that it is on; apart from the rest where it is long."""
    return pytest.mark.parametrize(
        ("page", "command"),
        [
            pytest.param(
                page,
                words,
                id=f"{page.name}: {' '.join(words)}",
                marks=[pytest.mark.long] if long(words) else [],
            )
            for page, words in commands
        ],
    )


@pytest.fixture
def beside_its_files(page, tmp_path, monkeypatch) -> None:
    """Be in a folder with the files that the page shows."""
    monkeypatch.chdir(tmp_path)
    for name, text in page.files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")


def runs_at_once(command: list[str]) -> bool:
    """Whether a command needs nothing but what is shipped, and little time."""
    if any(word.isupper() or word in ("--from-csv", "--write") for word in command):
        return False  # it reads what another line wrote, or writes what test_long_lines looks at
    if command[0] == "schedule":
        return command[1] not in SCHEDULES or not SCHEDULES[command[1]].searched
    if command[0] == "train":
        return command[-1] == "--dry-run"
    if command[0] == "rehearse":
        return command[-1] == "--configuration"
    return command[0] in ("recipes", "explain", "plan", "args", "--version")


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The verb that words name, and what is left of them."""
    context = VERBS.make_context("dsv3", [words[0]])
    _, verb, rest = VERBS.resolve_command(context, words)
    while hasattr(verb, "commands") and rest:
        _, verb, rest = verb.resolve_command(verb.make_context(verb.name, [rest[0]]), rest)
    return verb, rest


@pytest.mark.parametrize("page", [*PAGES, CHANGELOG], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    broken = []
    for link in page.links:
        file, _, anchor = link.partition("#")
        target = page.path.parent / file if file else page.path
        if not target.exists() or (anchor and anchor not in Page(target).anchors):
            broken.append(link)
    assert not broken


@each(COMMANDS)
def test_a_command_is_written_as_the_verb_takes_it(page, command):
    if command[0] == "--version":
        return
    verb, rest = resolve(command)
    verb.make_context(verb.name, rest)  # raises what a person would be told


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_verb_named_in_the_text_exists_with_its_options(page):
    for code in page.inline_code:
        if not code.startswith("dsv3 ") or code.startswith("dsv3 --"):
            continue
        words = shlex.split(re.sub(r"[\[\]…]", "", code))[1:]
        verb, rest = resolve(words)
        options = {option for parameter in verb.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, code


def quick_commands() -> list[tuple[Page, list[str]]]:
    """Each once, on the first page that has it, unless a page shows what it prints."""
    shown = {
        tuple(shlex.split(command)[1:]) for page in PAGES for command, _ in transcripts(page.text)
    }
    found = {}
    for page, command in COMMANDS:
        if runs_at_once(command) and not page.adds_code and tuple(command) not in shown:
            found.setdefault((tuple(command), tuple(page.files)), (page, command))
    return list(found.values())


@each(quick_commands(), takes_long)
@pytest.mark.usefixtures("beside_its_files", "forked_rehearsals")
def test_a_quick_command_runs(page, command):
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0, answer.output
    assert answer.output


def trains_a_recipe(page, command) -> bool:
    """Whether a command trains a recipe by its name, and not one called RECIPE for any."""
    return not page.adds_code and command[0] == "train" and not command[1].isupper()


@each([pair for pair in COMMANDS if trains_a_recipe(*pair)])
@pytest.mark.usefixtures("beside_its_files")
def test_a_recipe_to_train_can_be_read(page, command):
    _, name, *rest = command
    load_recipe(name, [word for word in rest if not word.startswith("--")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_targets_and_files_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in (*page.shell_lines, *page.inline_code):
        if made := re.match(r"make ([\w-]+)$", line):
            assert re.search(rf"^{made[1]}:", makefile, re.MULTILINE), line
        if script := re.match(r"python (benchmarks/\S+\.py)(.*)", line):
            source = (ROOT / script[1]).read_text(encoding="utf-8")
            assert all(f'"{option}"' in source for option in re.findall(r"--[\w-]+", script[2]))
        is_file = re.fullmatch(r"[\w-]+/[\w./-]+\.py", line)
        if is_file and not page.adds_code:
            assert any((top / line).exists() for top in (ROOT, ROOT / "dsv3_plugin")), line
