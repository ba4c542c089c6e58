"""What the recipe that a run keeps says, to whoever has a folder alone.

A few keys are read, and the rest is not checked: the recipe may be of another version of dsv3.
"""

import os
from pathlib import Path
from typing import Any

from dsv3_plugin.files.named import named
from dsv3_plugin.files.run_folder import RECIPE, RunFolder
from dsv3_plugin.recipe import yaml_text


def run_in(folder: Path) -> RunFolder:
    """The run of a folder; its recipe may have put the checkpoints elsewhere.

    Raises:
        UserError: the recipe cannot be read.
    """
    elsewhere = section(RunFolder(folder).recipe, "checkpoint").get("directory")
    return RunFolder(folder, named(elsewhere) if isinstance(elsewhere, str) else None)


def run_of(checkpoints: Path) -> RunFolder | None:
    """The run that checkpoints are of, in whose folder they lie, or that keeps them elsewhere.

    Raises:
        UserError: a recipe cannot be read.
    """
    around = run_in(Path(os.path.normpath(checkpoints / "..")))
    if _keeps(around, checkpoints):
        return around
    beside = _read(checkpoints / RECIPE).get("directory")
    run = run_in(named(beside)) if isinstance(beside, str) else None
    return run if run is not None and run.elsewhere and _keeps(run, checkpoints) else None


def _keeps(run: RunFolder, checkpoints: Path) -> bool:
    return run.recipe.is_file() and run.checkpoints.resolve() == checkpoints.resolve()


def data_in(run: RunFolder) -> Path:
    """The folder of a run's data, which its recipe may have put elsewhere.

    Raises:
        UserError: the recipe cannot be read.
    """
    path = section(run.recipe, "data").get("path")
    return named(path) if isinstance(path, str) else run.root / "data"


def section(recipe: Path, name: str) -> dict[str, Any]:
    """A section of a recipe as it is written; empty where there is none.

    Raises:
        UserError: the recipe cannot be read.
    """
    said = _read(recipe).get(name)
    return said if isinstance(said, dict) else {}


def _read(recipe: Path) -> dict[str, Any]:
    return yaml_text.read_mapping(recipe) if recipe.is_file() else {}
