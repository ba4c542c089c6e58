"""In which keys two recipes differ."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.recipe import shipped, yaml_text
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.places import nearest_run, run_at
from dsv3_plugin.recipe.validation import nearest

OWN = ("name", "directory")
"""Keys that every recipe has for itself."""


@dataclass(frozen=True)
class Difference:
    """A key that is not the same in two recipes.

    Attributes:
        key: its path.
        a, b: its values; a recipe that has no such key (of another stage, say) has `MISSING`.
    """

    key: str
    a: Any
    b: Any


MISSING = "—"


def flat(mapping: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` → `{"a.b": 1}`."""
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, dict):
            found |= flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value
    return found


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """The keys in which two recipes differ, in their order; whole recipes, as runs keep them."""
    mine, theirs = flat(a), flat(b)
    return [
        Difference(key, mine.get(key, MISSING), theirs.get(key, MISSING))
        for key in {**mine, **theirs}
        if key not in OWN and mine.get(key, MISSING) != theirs.get(key, MISSING)
    ]


def whole_recipe(place: str) -> dict[str, Any]:
    """A recipe with every default written out.

    Args:
        place: the folder of a run or of its checkpoints, a file, or a name that ships.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = named(place)
    if path.is_dir() and (run := run_at(path)) is not None:
        kept = run.launched_with if run.waits_to_begin else run.recipe
        if kept.is_file():  # read as it is: it may be of another version of dsv3
            return yaml_text.read_mapping(kept)
    if (
        not os.path.lexists(path)
        and shipped.existing(place, shipped.shipped_folder("recipes")) is None
    ):
        near = nearest_run(path) or nearest(place, shipped.what_ships()["recipes"])
        raise UserError(
            f"{place} is neither the folder of a run nor a recipe{near}: dsv3 runs "
            "lists those in runs/, dsv3 recipes the recipes that ship."
        )
    return yaml_text.parse(load_recipe(place).to_yaml(), place)
