"""docs/recipes.md says what the schema says."""

from pathlib import Path

import pytest

from dsv3_plugin.recipe import reference
from dsv3_plugin.recipe.common import Common
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.schema import STAGES
from dsv3_plugin.recipe.section import Section
from dsv3_plugin.recipe.validation import fields_of, model_in
from tests.docs.pages import Page

PAGE = Page(Path(__file__).parents[2] / "docs" / "recipes.md")


def test_the_page_is_not_stale():
    assert PAGE.text == reference.page(), "run python -m dsv3_plugin.recipe.reference"


@pytest.mark.parametrize("kind", [Common, *STAGES.values()], ids=lambda kind: kind.__name__)
def test_every_key_says_what_it_means(kind: type[Section]):
    for key, field in fields_of(kind).items():
        assert field.description, f"{kind.__name__}.{key}"
        if inner := model_in(field.annotation):
            test_every_key_says_what_it_means(inner)


def test_the_example_is_a_recipe(tmp_path):
    (example,) = PAGE.blocks("yaml")
    (tmp_path / "example.yaml").write_text(example)
    assert load_recipe(tmp_path / "example.yaml").model.num_layers == 6
