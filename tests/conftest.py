"""One small run, trained once, that many tests look at; and `dsv3` in the test's own process."""

import gc
import os
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from dsv3_plugin import cli
from tests.small_runs import Command, Trained, write_recipe

# One thread for every process of a test, set before torch is imported. The threads of an operation
# wait for each other without sleeping: beside another worker that costs more than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples everywhere, however slow the machine is.
hypothesis.settings.register_profile("dsv3", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("dsv3")

_LONG = (
    "tests/rehearsal/", "tests/training/", "tests/planner/memory/", "tests/dispatch/",
    "tests/pipeline/", "tests/upstream/", "tests/stages/", "tests/checkpoint/", "tests/docs/",
    "tests/schedules/", "tests/inference/", "tests/data/", "tests/distributed/", "tests/test_",
)  # fmt: skip
"""Where single tests take long: they start processes."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Thousands of tests are made, and with what they import stay to the end.

    Garbage is looked for among them neither meanwhile, which would be a fifth of it all, nor later.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first: at the end no worker is left alone with a long module."""
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG))


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small recipe, with its corpus beside it."""
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="session")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The small recipe, trained to its end by `dsv3 train` on two ranks."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return Trained(recipe, folder, Command.forked("train", recipe, f"directory={folder}").end())


@pytest.fixture(scope="session")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a Hugging Face folder."""
    from dsv3_plugin.checkpoint import export_hf  # brings torch

    folder = tmp_path_factory.mktemp("exported") / "hf"
    export_hf(trained.checkpoints, folder)
    return folder


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def dsv3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """A function that calls `dsv3` as a user does, in this process."""

    def call(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["dsv3", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Said(ended.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture
def forked_rehearsals(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rehearses on the CPU host has children that are forked: a tenth of their cost."""
    from tests.rehearsal.forked_child import fork_those_of_a_cpu  # brings torch

    fork_those_of_a_cpu(monkeypatch)
