"""What a recipe builds on, with what is said over it laid on top."""

import functools
from collections.abc import Sequence
from typing import Any

from dsv3_plugin.recipe.sections import BUDGETS


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
    when the recipe is validated.
    """
    sections = [over["training"] for over in overs if isinstance(over.get("training"), dict)]
    given = {key for one in sections for key in one.keys() & BUDGETS if one[key] is not None}
    training = below.get("training")
    if given and isinstance(training, dict):
        others = BUDGETS - given
        below = below | {"training": {k: v for k, v in training.items() if k not in others}}
    return functools.reduce(merge, overs, below)
