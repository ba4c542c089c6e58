"""What is said of a recipe that cannot be."""

from collections.abc import Sequence

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.load import load_recipe


def refusal(recipe: str, overrides: Sequence[str]) -> str:
    """The one sentence in which a recipe with overrides is refused."""
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)
