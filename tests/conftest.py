"""One small run, trained once, that many tests look at."""

from pathlib import Path

import pytest

from tests.small_runs import Command, Trained, write_recipe


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small recipe, with its corpus beside it."""
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="session")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The small recipe, trained to its end by `dsv3 train` on two ranks."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return Trained(recipe, folder, Command("train", recipe, f"directory={folder}").end())
