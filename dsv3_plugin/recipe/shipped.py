"""What comes with the package (recipes, models, clusters), and how people name it.

Data lies at the top level of the repository, and travels inside the wheel.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.validation import nearest, suggestion

_OTHER_SUFFIX = {".yaml": ".yml", ".yml": ".yaml"}
_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_folder(name: str) -> Path:
    """A folder of data that comes with the package (`recipes`, `launch/clusters`).

    The repository's when running from a checkout, below `_shipped` in a wheel.
    """
    wheel = _PACKAGE / "_shipped" / name
    return wheel if wheel.is_dir() else _PACKAGE.parent / name


def names_in(folder: Path) -> list[str]:
    """The names of the YAML files of a folder and those below it, without suffix."""
    return sorted(
        file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")
    )


def what_ships() -> dict[str, dict[str, str]]:
    """The recipes, models and clusters that come with the package: of each name, its summary."""
    folders = {"recipes": "recipes", "models": "recipes/models", "clusters": "launch/clusters"}
    ships = {}
    for kind, at in folders.items():
        folder = shipped_folder(at)
        names = [name for name in names_in(folder) if not name.startswith("models/")]
        ships[kind] = {name: _summary(folder / f"{name}.yaml") for name in names}
    return ships


def _summary(file: Path) -> str:
    """The first sentence of the comment at the top of a file."""
    comment = re.match(r"(#.*\n)*", file.read_text(encoding="utf-8"))
    text = " ".join(comment.group().replace("#", " ").split())
    return re.split(r"(?<=\.) ", text)[0]


def recipe_of_folder(folder: Path) -> str | None:
    """The recipe that comes with the package and whose runs are in a folder, by default."""
    recipes = shipped_folder("recipes")
    for recipe in what_ships()["recipes"]:
        said = yaml_text.read_mapping(recipes / f"{recipe}.yaml").get("name")
        if os.path.realpath(folder) == os.path.realpath(f"runs/{said or Path(recipe).name}"):
            return recipe
    return None


def recipes_to(folder: Path) -> list[str]:
    """The recipes that come with the package and by whose runs a folder is made by default, in
    their order: those first that others begin with and that are not there either."""
    makers: list[str] = []
    while (maker := recipe_of_folder(folder)) is not None and maker not in makers:
        makers.insert(0, maker)
        said = yaml_text.read_mapping(shipped_folder("recipes") / f"{maker}.yaml")
        before = said.get("from")
        if before is None or "parent_recipe" in said or os.path.exists(before):
            break  # dsv3 train makes such a parent by itself
        folder = Path(before)
    return makers


def existing(name_or_path: str, shipped: Path, beside: Path | None = None) -> Path | None:
    """The file of a path, or of a name in a shipped folder; None where there is none.

    Args:
        name_or_path: a path to an existing file, or a name without suffix.
        shipped: the folder where names are looked for.
        beside: a folder that relative paths may also be relative to.
    """
    path = named(name_or_path)
    places = [path] if beside is None else [beside / path, path]
    places.append(shipped / f"{name_or_path}.yaml")
    # Not `Path.is_file`, which raises for a name that is too long to be one.
    return next((place for place in places if os.path.isfile(place)), None)


def no_such(name_or_path: str, what: str, known: Sequence[str]) -> UserError:
    """The sentence on a name or path that is no file; `what` it was to be, from what is `known`."""
    path = named(name_or_path)
    if path.suffix in _OTHER_SUFFIX:
        return UserError(f"{path}: no such {what} file: {_in_its_place(path, what, known)}.")
    meant = next(filter(os.path.isfile, (f"{path}.yaml", f"{path}.yml")), None)
    if meant is not None:
        return UserError(f"'{name_or_path}' is no {what}, and {meant} is a file: name that.")
    last = name_or_path.rpartition("/")[2]
    called_so = [
        f"'{name}'" for name in known if name.rpartition("/")[2] == name_or_path or name == last
    ]
    folders = [name.partition("/")[0] for name in known if "/" in name]
    is_path = path.parent != Path() and not nearest(path.parts[0], folders)
    if is_path and not called_so:
        return UserError(
            f"'{name_or_path}' is neither a file nor a shipped {what}: "
            f"{_in_its_place(path, what, known)}."
        )
    if called_so:
        near = f" (nearest: {', '.join(called_so)})"
    else:
        near = suggestion(name_or_path, list(known))
    return UserError(f"'{name_or_path}' is neither a file nor a shipped {what}{near}.")


def _in_its_place(path: Path, what: str, known: Sequence[str]) -> str:
    """What may be named where there is no file of a path."""
    other = path.with_suffix(_OTHER_SUFFIX.get(path.suffix, ".yaml"))
    if os.path.isfile(other):
        return f"{other} is one, name that"
    name = path.with_suffix("") if path.suffix in _OTHER_SUFFIX else path
    if name.as_posix() in known:
        return f"{name} comes with dsv3, name it without {path.suffix}"
    if what == "cluster":
        return f"name one that is there, such as a copy of a shipped one ({', '.join(known)})"
    called_so = [one for one in known if one.rpartition("/")[2] == name.name]
    plainest = [one for one in known if one.rpartition("/")[2] == "tiny"]
    example = (*called_so, *plainest, *known)[0]
    return f"name one that is there, or a shipped {what} such as {example}"
