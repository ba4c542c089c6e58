"""docs/clusters.md says what the schema says."""

from pathlib import Path

from dsv3_plugin.planner import reference
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.recipe.validation import fields_of, model_in
from tests.docs.pages import Page

PAGE = Page(Path(__file__).parents[2] / "docs" / "clusters.md")


def test_the_page_is_not_stale():
    assert PAGE.text == reference.page(), "run python -m dsv3_plugin.planner.reference"


def test_every_key_says_what_it_means():
    kinds = [Cluster]
    for kind in kinds:
        for key, field in fields_of(kind).items():
            assert field.description, f"{kind.__name__}.{key}"
            assert f"| `{key}` |" in PAGE.text
            if (inner := model_in(field.annotation)) is not None:
                kinds.append(inner)
