"""The cards of what was verified: complete, and every command they name exists."""

import os
import re
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import pytest
import yaml

from tests.docs.pages import ROOT, Page
from tests.docs.test_pages import resolve
from tests.forked import answer_of

FOLDER = ROOT / "docs" / "verification"
MODELS = sorted(path.stem for path in (ROOT / "recipes" / "models").glob("*.yaml"))
ITEMS = re.findall(r"^\| ([^|]+?) \| .+\? \|$", Page(FOLDER / "README.md").text, re.MULTILINE)
ANSWERS = (True, "partly", False, "does not apply")  # YAML reads yes and no as truth


def card(model: str) -> dict[str, dict[str, Any]]:
    return yaml.safe_load((FOLDER / f"{model}.yaml").read_text(encoding="utf-8"))


class _Collected:
    """A plugin that keeps what is collected, by name."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.names = [item.nodeid for item in session.items]


def _collect(files: list[str], answer: Connection) -> None:
    os.chdir(ROOT)
    collected = _Collected()
    code = pytest.main(
        ["--collect-only", "-p", "no:cacheprovider", "-p", "no:terminal", *files], [collected]
    )
    answer.send((code, collected.names))


@cache
def tests_there_are() -> frozenset[str]:
    """Every test that pytest collects in the files that cards name, with and without parameters."""
    named = {
        command.partition("::")[0]
        for model in MODELS
        for entry in card(model).values()
        for command in entry.get("command", ())
        if command.startswith("tests/")
    }
    code, collected = answer_of(_collect, sorted(named))
    assert code == pytest.ExitCode.OK
    return frozenset(collected) | {line.partition("[")[0] for line in collected}


def test_every_model_has_a_card_and_every_card_a_model():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == MODELS


@pytest.mark.parametrize("model", MODELS)
def test_a_card_answers_every_question(model):
    assert list(card(model)) == ITEMS
    for item, entry in card(model).items():
        assert entry["verified"] in ANSWERS, item
        assert entry["how"], item
        assert entry.keys() <= {"verified", "how", "command", "when", "where"}, item
        if entry["verified"] in (True, "partly"):
            assert entry.keys() >= {"command", "when", "where"}, item


@pytest.mark.parametrize("model", MODELS)
def test_commands_exist(model):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for item, entry in card(model).items():
        for command in entry.get("command", ()):
            kind, _, rest = command.partition(" ")
            if kind == "make":
                assert f"\n{rest}:" in makefile, item
            elif kind == "dsv3":
                verb, words = resolve(rest.split())
                verb.make_context(verb.name, words)
            else:
                assert command in tests_there_are(), item
