"""Keys that a file or an override sets to null, where null is none of their values.

What a recipe builds on may have said something there, and so may a shipped model: null takes it
back, so that the key has its default again.
"""

import typing
from collections.abc import Mapping
from typing import Any

import pydantic

from dsv3_plugin.recipe.validation import fields_of, model_in, takes_null


def without_unset(kind: type[pydantic.BaseModel], data: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping of a file without the keys that null sets back to their defaults.

    A key that is required stays as it is, to be refused.
    """
    kept = {}
    for key, value in data.items():
        field = fields_of(kind).get(key)
        if field is None:
            kept[key] = value
        elif value is not None:
            kept[key] = _inside(field.annotation, value)
        elif field.is_required() or takes_null(field.annotation):
            kept[key] = value
    return kept


def _inside(annotation: Any, value: Any) -> Any:
    """The value of a key, in which a section's keys are taken back, and what a person named."""
    inner = model_in(annotation)
    if not isinstance(value, Mapping):
        return value
    if typing.get_origin(annotation) is not dict:
        return value if inner is None else without_unset(inner, value)
    named = {name: one for name, one in value.items() if one is not None}
    if inner is None:
        return named
    return {name: _inside(inner, one) for name, one in named.items()}
