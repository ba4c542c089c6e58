"""What a search found, as a recipe: a base, and what is changed of it."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.planner.search.candidate import Candidate, Choice
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.load import find, load_recipe, shipped_folder
from dsv3_plugin.recipe.merging import merge
from dsv3_plugin.recipe.overrides import parse

_WIDTH = 98


def write_recipe(
    candidate: Candidate,
    path: Path,
    name_or_path: str,
    overrides: Sequence[str] = (),
    cluster: str | None = None,
) -> None:
    """Write a way that was found as a recipe that `load_recipe` reads.

    Args:
        candidate: the way.
        path: the file.
        name_or_path: the recipe that was given; the file builds on it.
        overrides: what was laid over it on the command line; that is in the file too.
        cluster: for which it was found, a name or a path; None: the recipe's own.

    Raises:
        UserError: the file cannot be written.
    """
    text = recipe_text(candidate, path, name_or_path, overrides, cluster)
    with write_errors_as(lambda reason: f"cannot write {path}: {reason}."), whole_file(path) as new:
        new.write_text(text, encoding="utf-8")


def recipe_text(
    candidate: Candidate,
    path: Path,
    name_or_path: str,
    overrides: Sequence[str] = (),
    cluster: str | None = None,
) -> str:
    """The text of that file; the arguments are those of `write_recipe`."""
    base = load_recipe(name_or_path, overrides)
    before = Choice.of(base).keys() | {"pipeline.layout": base.pipeline.layout}
    after = candidate.choice.keys() | {"pipeline.layout": candidate.layout}
    if cluster is not None:
        before["cluster"], after["cluster"] = base.cluster, _beside(cluster, path)
    changes: dict[str, Any] = {}
    for text in overrides:
        changes = merge(changes, parse(text).read(type(base)))
    for key, value in after.items():
        if value != before[key]:
            changes = merge(changes, _nested(key, value))
    data = {"base": _reference(name_or_path, path)} | changes
    return _comment(candidate.reasons) + yaml_text.dump(data)


def _nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b` → {"a": {"b": value}}."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _reference(name_or_path: str, path: Path) -> str:
    """The base as the file names it: by a shipped name, or from where the file lies."""
    file = find(name_or_path).resolve()
    if file.is_relative_to(shipped_folder().resolve()):
        return file.relative_to(shipped_folder().resolve()).with_suffix("").as_posix()
    return os.path.relpath(file, path.resolve().parent)


def _beside(cluster: str, path: Path) -> str:
    """A cluster as the file names it: a name, or where its own file lies from there."""
    if Path(cluster).is_file():
        return os.path.relpath(Path(cluster).resolve(), path.resolve().parent)
    return cluster


def _comment(sentences: Sequence[str]) -> str:
    """Sentences as a comment before a file's first line."""
    lines = [
        line
        for sentence in sentences
        for line in textwrap.wrap(sentence, _WIDTH, subsequent_indent="  ")
    ]
    return "".join(f"# {line}\n" for line in lines)
