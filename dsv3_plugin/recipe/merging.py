"""What a recipe builds on, with what is said over it laid on top."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pydantic

from dsv3_plugin.recipe.schema import STAGES
from dsv3_plugin.recipe.sections import BUDGETS
from dsv3_plugin.recipe.validation import fields_of, model_in, takes_null, types_in

Keys = tuple[str, ...]


def _off_by_null(kind: type[pydantic.BaseModel], above: Keys = ()) -> Iterator[Keys]:
    for name, field in fields_of(kind).items():
        section = model_in(field.annotation)
        if section is not None and dict in types_in(field.annotation):
            if takes_null(field.annotation):
                yield (*above, name)
            yield from _off_by_null(section, (*above, name))


OFF_BY_NULL = frozenset(keys for kind in STAGES.values() for keys in _off_by_null(kind))
"""Sections that are off where they are null, by their keys."""


def section_at(data: Any, keys: Keys) -> dict[str, Any] | None:
    """The mapping at a place of a recipe's, None where there is none."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else None


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top, mapping by mapping.

    A model given by name is a model without changes, so `model.num_layers: 2` over `model: tiny`
    changes tiny; a name, or a mapping with its own `base`, replaces the model.
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        stretch = merged.get("rotary_scaling_factor")
        if key == "rope_type" and (value, below, stretch) == ("yarn", "rope", 1.0):
            del merged["rotary_scaling_factor"]  # plain RoPE's own, which stretches nothing
        if key == "model" and isinstance(below, str):
            below = {"base": below}
        replaces = key == "model" and isinstance(value, dict) and "base" in value
        if isinstance(below, dict) and isinstance(value, dict) and not replaces:
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def laid_over(below: dict[str, Any], overs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`below` with mappings of one level laid on top: a file over its base, or all overrides.

    A budget that they give takes the place of whichever there was; two of one level are refused
    when the recipe is validated. Nulls in a section that is off take back nothing, and do not
    switch it on.
    """
    sections = [over["training"] for over in overs if isinstance(over.get("training"), dict)]
    given = {key for one in sections for key in one.keys() & BUDGETS if one[key] is not None}
    training = below.get("training")
    if given and isinstance(training, dict):
        others = BUDGETS - given
        below = below | {"training": {k: v for k, v in training.items() if k not in others}}
    return functools.reduce(lambda under, over: merge(under, _of_effect(over, under)), overs, below)


def _of_effect(over: dict[str, Any], below: dict[str, Any]) -> dict[str, Any]:
    """What is laid over `below`, without sections of nulls alone that are off there."""
    for keys in OFF_BY_NULL:
        said = section_at(over, keys)
        of_nulls = said and all(value is None for value in said.values())
        if of_nulls and section_at(below, keys) is None:
            over = _without(over, keys)
    return over


def _without(data: dict[str, Any], keys: Keys) -> dict[str, Any]:
    first, *rest = keys
    if not rest:
        return {key: value for key, value in data.items() if key != first}
    return data | {first: _without(data[first], tuple(rest))}
