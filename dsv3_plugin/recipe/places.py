"""What a folder that a person names stands for, wherever weights, a dataset or a run are asked for.

A run's folder stands for its checkpoints where weights are asked for, and for its data where a
dataset is; checkpoints, and an iteration of them, stand for the run that they are of where a run
is. What a folder is itself it stays: nothing is looked for below weights.
"""

import difflib
import os
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.files.run_folder import JOB_SCRIPT, RunFolder, is_checkpoint
from dsv3_plugin.recipe.kept import data_in, run_in, run_of


def weights_at(path: str | Path) -> Path:
    """The folder of weights that is meant: a run's checkpoints, or what was named.

    Raises:
        UserError: the recipe of a run cannot be read.
    """
    path = named(path)
    if is_checkpoint(path) or (path / "config.json").is_file():
        return path
    checkpoints = run_in(path).checkpoints
    return checkpoints if is_checkpoint(checkpoints) else path


def data_at(path: str | Path) -> Path:
    """The folder of a dataset that is meant: that of a run's data, or what was named.

    A run may name another run for its data.

    Raises:
        UserError: the recipe of a run cannot be read.
    """
    seen = {path := named(path)}
    while (run := run_at(path)) is not None and (path := data_in(run)) not in seen:
        seen.add(path)
    return path


def run_at(path: str | Path) -> RunFolder | None:
    """The run that is meant; None: nothing says that it is one, or the checkpoints of one.

    Raises:
        UserError: its recipe cannot be read.
    """
    path = named(path)
    run = run_of(path)
    if run is None and is_checkpoint(path):
        run = run_of(Path(os.path.normpath(path / "..")))
    if run is not None:
        return run
    run = run_in(path)
    if run.metrics.path.is_file() or run.waits_to_begin or run.has_only_prepared:
        return run
    others = is_checkpoint(path) or (path / JOB_SCRIPT).exists()  # which have a recipe, too
    return run if run.recipe.is_file() and not others else None


def refuse_not_begun(run: RunFolder) -> None:
    """Raise UserError for a run of which no number is known yet.

    It waits for its job, or prepares its data, or ended meanwhile.
    """
    what = "its job" if run.waits_to_begin else "it"
    if run.waits_to_begin or run.has_only_prepared:
        raise UserError(
            f"the run in {run.root} has not begun: dsv3 status {run.root} says how {what} stands."
        )


def the_run_at(path: str | Path) -> RunFolder:
    """The run that is meant.

    Raises:
        UserError: there is none.
    """
    if (run := run_at(path)) is not None:
        return run
    if RunFolder(named(path)).launched_with.is_file():
        raise UserError(
            f"the run in {path} has not begun, and Slurm was given no job of it: launch it again "
            "(dsv3 launch)."
        )
    raise UserError(f"{path} {_what_is_there(named(path))}; dsv3 status lists those in runs/.")


def nearest_run(path: Path) -> str:
    """The run that a misspelt one is most like, in parentheses; empty if it is like none.

    Those in its folder are looked at, and those in runs/.
    """
    runs: dict[str, Path] = {}
    for folder in (path.parent, Path("runs")):
        children = sorted(folder.iterdir()) if folder.is_dir() else ()
        runs |= {child.name: child for child in children if child.name not in runs}
    near = difflib.get_close_matches(path.name, runs, n=3)
    found = next((runs[name] for name in near if _is_run(runs[name])), None)
    return "" if found is None else f" (nearest: '{found}')"


def _is_run(path: Path) -> bool:
    try:
        return run_at(path) is not None
    except UserError:  # its recipe is damaged
        return True


def _what_is_there(path: Path) -> str:
    """What stands in the place of a run, and what to name instead."""
    if path.is_file():
        above = next((folder for folder in path.parents if run_at(folder) is not None), None)
        return f"is a file: name a run's folder{'' if above is None else f', {above}'}"
    near = Path("runs") / path
    if not path.exists() and near.is_dir() and run_at(near) is not None:
        return f"does not exist: name a run's folder, such as {near}"
    return f"{what_is_in_place(path)}: name a run's folder"


def what_is_in_place(path: Path) -> str:
    """What stands where a run was looked for; where nothing does, the run that is most like it."""
    if path.is_file():
        return "is a file"
    if path.is_dir():
        return "holds no run"
    return f"does not exist{nearest_run(path)}"
