"""The file behind a name or a path of a recipe or a model, and what is said where there is none."""

import os
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.files.run_folder import RECIPE, RunFolder
from dsv3_plugin.recipe import shipped


def shipped_folder() -> Path:
    """The folder of the recipes that come with the package."""
    return shipped.shipped_folder("recipes")


def find(
    name_or_path: str, folder: str = "", beside: Path | None = None, *, models: bool = False
) -> Path:
    """The file behind a name or a path.

    Args:
        name_or_path: a path to an existing file, or a name without suffix.
        folder: the part of the shipped recipes where names are looked for.
        beside: a folder that relative paths may also be relative to.
        models: whether the name may be a model's too, for what is suggested.
    """
    within = shipped_folder() / folder
    if (file := shipped.existing(name_or_path, within, beside)) is not None:
        return file
    path = named(name_or_path)
    if os.path.isdir(path) and folder != "models":
        inside = path / RECIPE
        launched = RunFolder(path)
        if inside.is_file():
            way_out = f"it is that of a run, whose recipe is {inside}"
        elif launched.waits_to_begin:
            way_out = (
                "it is that of a run that has not begun; it was launched with "
                f"{launched.launched_with}"
            )
        elif launched.launched_with.is_file():
            way_out = (
                "Slurm was given no job of the run in it; launch it again (dsv3 launch), or name "
                f"what it was launched with, {launched.launched_with}"
            )
        elif launched.has_only_prepared:
            way_out = "it is that of a run that has not begun: name the recipe that it was given"
        else:
            way_out = "name a YAML file, or a shipped recipe such as pretrain/tiny"
        raise UserError(f"{path} is a folder, and a recipe is asked for: {way_out}.")
    if not folder and os.path.isfile(shipped.shipped_folder("launch/clusters") / f"{path}.yaml"):
        raise is_a_cluster(name_or_path)
    known = [name for name in shipped.names_in(within) if models or not name.startswith("models/")]
    what = "model" if folder == "models" else "recipe or model" if models else "recipe"
    raise shipped.no_such(name_or_path, what, [name.removeprefix("models/") for name in known])


def found(name: str, folder: str, path: str | Path, key: str) -> Path:
    """The file that a key names in another, which the sentence begins with if there is none.

    Args:
        name: what it names.
        folder: as `find`.
        path: the file that says so.
        key: that says so there; paths of a `base` may be relative to the file's folder.
    """
    beside = Path(path).parent if key == "base" else None
    try:
        return find(name, folder, beside)
    except UserError as error:
        said, around = str(error), Path(path).parent
        own = beside is not None or not around.is_relative_to(shipped_folder())
        if own and (meant := around / f"{name}.yaml").is_file():
            # The folder of a file is not where an override looks.
            where = meant if beside is None else f"{name}.yaml beside it"
            said = f"'{name}' is no file, and {where} is one: write that."
            if key == "base" and meant.samefile(path):
                other = "tiny" if folder == "models" else "pretrain/tiny"
                said = f"'{name}' is this file itself, a circle: name another, such as {other}."
        raise UserError(f"{path}: {key}: {said}") from error


def is_a_cluster(name_or_path: str | Path) -> UserError:
    return UserError(
        f"{name_or_path} is a cluster, and a recipe is asked for: name a recipe first, such as "
        f"pretrain/tiny, and this with --cluster {name_or_path}."
    )
