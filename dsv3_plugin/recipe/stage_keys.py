"""Keys that some stages have, in a recipe of another.

A recipe may build on one of another stage, whose keys null takes back; what they still say is
refused.
"""

from collections.abc import Mapping
from typing import Any

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.schema import STAGES, Recipe
from dsv3_plugin.recipe.validation import fields_of


def without_keys_of_others(
    kind: type[Recipe], data: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The mapping of a recipe without what null takes back of other stages' keys.

    Args:
        kind: the class of its stage.
        data: the mapping.
        where: the recipe's file.

    Raises:
        UserError: one of them still says something.
    """
    stages = {name: fields_of(stage).keys() for name, stage in STAGES.items()}
    this = next(name for name, stage in STAGES.items() if stage is kind)
    kept = dict(data)
    for key in data.keys() - stages[this]:
        if not (others := [name for name, keys in stages.items() if key in keys]):
            continue
        if kept.pop(key) is not None:
            raise UserError(
                f"{where}: '{key}' is a key of stage {' and '.join(others)}, and the stage "
                f"is {this}: leave it out, or set the stage."
            )
    return kept
