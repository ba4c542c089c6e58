"""Keys that a file or an override sets to null, where null is none of their values.

What a recipe builds on may have said something there, and so may a shipped model: null takes it
back, so that the key has its default again.
"""

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
            inner = model_in(field.annotation)
            deeper = inner is not None and isinstance(value, Mapping)
            kept[key] = without_unset(inner, value) if deeper else value
        elif field.is_required() or takes_null(field.annotation):
            kept[key] = value
    return kept
