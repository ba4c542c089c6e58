"""One small run, trained once, that many tests look at."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.small_runs import Command, Ended, write_recipe


@dataclass(frozen=True)
class Trained:
    """A run that went through undisturbed."""

    recipe: Path
    folder: Path
    ended: Ended

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def data(self) -> Path:
        return self.folder / "data"


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small recipe, with its corpus beside it."""
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="session")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The small recipe, trained to its end by `dsv3 train` on two ranks."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return Trained(recipe, folder, Command("train", recipe, f"directory={folder}").end())
