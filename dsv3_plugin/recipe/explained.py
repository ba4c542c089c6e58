"""One key of a recipe explained, as `docs/recipes.md` has it: what it takes, and what it means."""

import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.key_tables import Told
from dsv3_plugin.recipe.other_names import MEANT
from dsv3_plugin.recipe.reference import TABLES
from dsv3_plugin.recipe.rules.rl import NAMED_REWARDS
from dsv3_plugin.recipe.schema import STAGES, Recipe
from dsv3_plugin.recipe.section import Section
from dsv3_plugin.recipe.validation import fields_of, model_in, nearest

_NAME = "NAME"
"""In a key, what a person names."""


OF_FILES = {
    "base": Told(
        "base",
        "text",
        "none",
        "A shipped recipe, or a file beside this one, that it builds on: mappings merge key by "
        "key, all else is replaced, null takes back. A key of files alone: a whole recipe has "
        "none.",
    ),
    "model.base": Told(
        "base",
        "text",
        "none",
        "A shipped model, or the path of a model's file, of which the other keys of model change "
        "some. A key of files alone: a whole recipe has all of its model's own keys.",
    ),
}
"""What is told of the keys by which files build on others."""


@dataclass(frozen=True)
class Explained:
    """A key of a recipe.

    Attributes:
        told: what is told of it.
        keys: what is told of each key of the section that it is, or may be.
    """

    told: Told
    keys: tuple[Told, ...]


@dataclass(frozen=True)
class Place:
    """Where a key is.

    Attributes:
        path: the key with its sections.
        stages: that have it.
    """

    path: str
    stages: tuple[str, ...]

    @property
    def title(self) -> str:
        """The path, and the stages where not all have it."""
        every = len(self.stages) == len(STAGES)
        return self.path if every else f"{self.path} (stage: {', '.join(self.stages)})"


@dataclass(frozen=True)
class Absent:
    """Of a key that a recipe has not, though its stage has such.

    Attributes:
        section: where it would be.
        names: what is there.
    """

    section: str
    names: tuple[str, ...]


def value_in(recipe: Recipe, path: str) -> tuple[str, Any]:
    """A key's value in a recipe.

    Args:
        recipe: of a stage that has such a key.
        path: the key with its sections, by dots, which names in it may have too.

    Returns:
        The key and its value, or `Absent`; of what is in a list, or in a section that is null, the
        list or the null, and its key.
    """
    value, last, parts = recipe.model_dump(mode="json"), path, path.split(".")
    above: list[str] = []
    while parts and isinstance(value, dict):
        heads = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        if (head := next((one for one in heads if one in value), None)) is None:
            if parts[0] == _NAME:
                break
            return path, Absent(".".join(above), tuple(value))
        value, last = value[head], head
        above.append(head)
        parts = parts[head.count(".") + 1 :]
    return last, value


def explained(path: str) -> dict[Explained, list[str]]:
    """What a key of a recipe means, by each meaning the stages that give it.

    Args:
        path: the key with its sections (`training.eval_steps`).

    Raises:
        UserError: no stage has such a key; the sentence names the nearest there is.
    """
    if path in OF_FILES:
        return {Explained(OF_FILES[path], ()): [*STAGES]}
    found: dict[Explained, list[str]] = {}
    for stage, kind in STAGES.items():
        if (meant := _without_own_name(kind, path)) in paths(kind):
            found.setdefault(_in(kind, meant), []).append(stage)
    if not found:
        every = dict.fromkeys(known for kind in STAGES.values() for known in paths(kind))
        called_so = [known for known in every if known.rpartition(".")[2] == path]
        called_so += [known for known in every if known == MEANT.get(path.replace("-", "_"))]
        near = f" (nearest: {', '.join(map(repr, called_so))})" if called_so else ""
        every |= dict.fromkeys(f"rewards.{name}" for name in NAMED_REWARDS)
        near = near or nearest(path, every) or ": dsv3 explain, alone, says which there are"
        raise UserError(f"no recipe has a key '{path}'{near}")
    return found


def sections() -> dict[Place, Told]:
    """What is told of each key and section at the top of a recipe, of whichever stage."""
    return {place: told for place, told in _all_told().items() if "." not in place.path}


def having(word: str) -> dict[Place, Told]:
    """What is told of the keys that have a word in their names, then of those that speak of it.

    Args:
        word: one or several, in any case; less than two letters or digits are in no key.
    """
    sought = _plain(word)
    if len(re.findall(r"\w", sought)) < 2:
        return {}
    every = _all_told()
    whole = re.compile(rf"(?<!\w){re.escape(sought)}(?:e?s)?(?!\w)")
    meant = [place for place in every if place.path == MEANT.get(sought.replace(" ", "_"))]
    named = [
        place
        for place in every
        if whole.search(_plain(place.path if "." in word else place.path.rpartition(".")[2]))
    ]
    spoken = [place for place, told in every.items() if whole.search(_plain(told.meaning))]
    return {place: every[place] for place in dict.fromkeys(meant + named + spoken)}


def _all_told() -> dict[Place, Told]:
    """What is told of every key, as the first stage has it that has it."""
    first: dict[str, Told] = {}
    stages: dict[str, list[str]] = {}
    for stage, kind in STAGES.items():
        for path, told in _told_in(kind):
            first.setdefault(path, told)
            stages.setdefault(path, []).append(stage)
    return {Place(path, tuple(stages[path])): told for path, told in first.items()}


def _told_in(kind: type[Section], above: str = "") -> Iterator[tuple[str, Told]]:
    for one in TABLES.told(kind, above):
        yield above + one.key, one
        field = fields_of(kind)[one.key]
        if (section := model_in(field.annotation)) is not None:
            yield from _told_in(section, f"{above}{one.key}.{_name_in(field)}")


def _plain(text: str) -> str:
    """A text in which words are found however a key spells them."""
    return text.casefold().replace("_", " ").strip()


def paths(kind: type[Section], above: str = "") -> Iterator[str]:
    """Every key of a recipe's class and of the sections in it, by dots."""
    for key, field in fields_of(kind).items():
        yield above + key
        if (section := model_in(field.annotation)) is not None:
            yield from paths(section, f"{above}{key}.{_name_in(field)}")


def _name_in(field: FieldInfo) -> str:
    """What stands for a name of the user's own, where a field has sections by such."""
    return f"{_NAME}." if typing.get_origin(field.annotation) is dict else ""


def _without_own_name(kind: type[Section], path: str) -> str:
    """A key as `paths` has it, where a person gives a name: `rewards.length.margin`.

    What is like a known name and no such is left as it is, to be refused.
    """
    first, *inside = path.split(".")
    field = fields_of(kind).get(first)
    if field is None or not inside or not _name_in(field):
        return path
    known = fields_of(model_in(field.annotation))
    if inside[-1] in known:
        return f"{first}.{_NAME}.{inside[-1]}"
    own = len(inside) > 1 and inside[0] not in NAMED_REWARDS
    one = len(inside) == 1 and (inside[0] in NAMED_REWARDS or not nearest(inside[0], NAMED_REWARDS))
    return first if known and (own or one) else path


def _in(kind: type[Section], path: str) -> Explained:
    """A key that a recipe's class has."""
    *above, key = path.split(".")
    section = kind
    for part in above:
        if part == _NAME:
            continue
        section = model_in(fields_of(section)[part].annotation)
    place = "".join(f"{part}." for part in above)
    [told] = (told for told in TABLES.told(section, place) if told.key == key)
    inner = model_in(fields_of(section)[key].annotation)
    return Explained(told, () if inner is None else tuple(TABLES.told(inner, f"{path}.")))
