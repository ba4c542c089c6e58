"""One key of a recipe explained, as `docs/recipes.md` has it: what it takes, and what it means."""

from collections.abc import Iterator
from dataclasses import dataclass

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.key_tables import Told
from dsv3_plugin.recipe.reference import TABLES
from dsv3_plugin.recipe.schema import STAGES
from dsv3_plugin.recipe.section import Section
from dsv3_plugin.recipe.validation import fields_of, model_in, nearest


@dataclass(frozen=True)
class Explained:
    """A key of a recipe.

    Attributes:
        told: what is told of it.
        keys: what is told of each key of the section that it is, or may be.
    """

    told: Told
    keys: tuple[Told, ...]


def explained(path: str) -> dict[Explained, list[str]]:
    """What a key of a recipe means, by each meaning the stages that give it.

    Args:
        path: the key with its sections (`training.eval_steps`).

    Raises:
        UserError: no stage has such a key; the sentence names the nearest there is.
    """
    found: dict[Explained, list[str]] = {}
    for stage, kind in STAGES.items():
        if path in paths(kind):
            found.setdefault(_in(kind, path), []).append(stage)
    if not found:
        every = dict.fromkeys(known for kind in STAGES.values() for known in paths(kind))
        called_so = [known for known in every if known.rpartition(".")[2] == path]
        near = f" (nearest: {', '.join(map(repr, called_so))})" if called_so else ""
        raise UserError(f"no recipe has a key '{path}'{near or nearest(path, every)}")
    return found


def paths(kind: type[Section], above: str = "") -> Iterator[str]:
    """Every key of a recipe's class and of the sections in it, by dots."""
    for key, field in fields_of(kind).items():
        yield above + key
        if (section := model_in(field.annotation)) is not None:
            yield from paths(section, f"{above}{key}.")


def _in(kind: type[Section], path: str) -> Explained:
    """A key that a recipe's class has."""
    *above, key = path.split(".")
    section = kind
    for part in above:
        section = model_in(fields_of(section)[part].annotation)
    place = "".join(f"{part}." for part in above)
    [told] = (told for told in TABLES.told(section, place) if told.key == key)
    inner = model_in(fields_of(section)[key].annotation)
    return Explained(told, () if inner is None else tuple(TABLES.told(inner, f"{path}.")))
