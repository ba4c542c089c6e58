"""Which file says the value of a key that a recipe has: its own, one it builds on, or none."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dsv3_plugin.recipe import shipped, yaml_text
from dsv3_plugin.recipe.load import find, shipped_folder
from dsv3_plugin.recipe.overrides import parse
from dsv3_plugin.recipe.regrets import INTERVALS

_ABSENT = object()
_OWN = ("name", "directory")
"""Keys that no recipe has from what it builds on."""


def said_by(recipe: str | Path, key: str) -> list[str]:
    """The files that say a key, the one that wins first: of a value that one, of a section all.

    Args:
        recipe: a name or a path.
        key: with its sections, by dots.

    Returns:
        Names of what ships (`pretrain/tiny`), paths of other files; nothing: it is the default.

    Raises:
        UserError: a file cannot be read.
    """
    path, keys = find(str(recipe)), key.split(".")
    found: list[tuple[Path, Any]] = []
    for file, data in _with_bases(path, ""):
        if file != path and key in _OWN:
            break
        said = _at(data, keys)
        if (
            said is _ABSENT
            and keys[0] == "model"
            and (model := _model_file(data, file)) is not None
        ):
            found += [
                (one, value) for one, value in _in_model(model, keys[1:]) if value is not _ABSENT
            ]
            break
        if said is not _ABSENT:
            found.append((file, said))
        model = data.get("model")
        if keys[0] == "model" and (isinstance(model, str) or "base" in (model or {})):
            break  # which replaces a model below
    sections = [file for file, said in found if isinstance(said, dict)]
    winning = found[:1] if found and not isinstance(found[0][1], dict) else []
    return list(dict.fromkeys(map(_called, [file for file, _ in winning] or sections)))


def built_on(recipe: str | Path, key: str) -> Any:
    """What a recipe's own file says of `base` or `model.base`; None: nothing.

    Raises:
        UserError: it cannot be read.
    """
    data = yaml_text.read_mapping(find(str(recipe)))
    model = data.get("model")
    if key == "model.base" and not isinstance(model, dict):
        return model  # a name alone
    return (model if key == "model.base" else data).get("base")


def inherited(
    recipe: str | Path, overrides: Sequence[str] = (), keys: Sequence[str] = INTERVALS
) -> dict[str, str]:
    """Of some keys those that a recipe has from one it builds on, and which that is.

    Args:
        recipe: a name or a path.
        overrides: `key.sub=value` texts, which say a key themselves.
        keys: with their sections, by dots.

    Raises:
        UserError: as `said_by`.
    """
    own, laid_over = _called(find(str(recipe))), [parse(text).path for text in overrides]
    found = {}
    for key in keys:
        files = said_by(recipe, key)
        over = any(f"{key}.".startswith(f"{path}.") for path in laid_over)
        if files and files[0] != own and not over:
            found[key] = files[0]
    return found


def _with_bases(path: Path, folder: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A file and those that it builds on, each with its mapping."""
    seen: set[Path] = set()
    within: Path | None = path
    while within is not None and within.resolve() not in seen:
        seen.add(within.resolve())
        data = yaml_text.read_mapping(within)
        yield within, data
        base = data.get("base")
        known = shipped_folder() / folder
        within = shipped.existing(base, known, within.parent) if isinstance(base, str) else None


def _model_file(data: dict[str, Any], file: Path) -> Path | None:
    """The file of the model that a recipe's file names."""
    model = data.get("model")
    name = model.get("base") if isinstance(model, dict) else model
    if not isinstance(name, str):
        return None
    return shipped.existing(name, shipped_folder() / "models", file.parent)


def _in_model(file: Path, keys: list[str]) -> Iterator[tuple[Path, Any]]:
    for one, data in _with_bases(file, "models"):
        yield one, _at(data, keys)


def _at(data: Any, keys: list[str]) -> Any:
    """What a mapping says of a key; null takes back what is said below."""
    for key in keys:
        if not isinstance(data, dict):
            return _ABSENT
        data = data.get(key, _ABSENT)
    return data


def _called(file: Path) -> str:
    """The name of what ships, or the path."""
    if not file.resolve().is_relative_to(shipped_folder().resolve()):
        return str(file)
    return file.resolve().relative_to(shipped_folder().resolve()).with_suffix("").as_posix()
