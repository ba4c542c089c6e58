"""A script is one that letters are called by, in whatever case."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.load import load_recipe


@pytest.mark.parametrize("script", ["LATIN", "latin", "CJK", "Hangul", "old italic"])
def test_a_script_is_taken_in_any_case(script: str):
    recipe = load_recipe("rl/tiny", [f"rewards.language.script={script}"])
    assert recipe.rewards["language"].script == script


@pytest.mark.parametrize(
    ("script", "way_out"),
    [
        (
            "Cyrilic",
            "a script Cyrilic (nearest: 'CYRILLIC'): name one by the word that its letters",
        ),
        ("han", "a script han (nearest: 'CJK')"),
        ("LAT", "a script LAT (nearest: 'LATIN')"),
        ("Klingon", "a script Klingon, such as LATIN, CYRILLIC or CJK"),
    ],
)
def test_an_unknown_one_is_refused_with_the_nearest(script: str, way_out: str):
    with pytest.raises(UserError) as refused:
        load_recipe("rl/tiny", [f"rewards.language.script={script}"])
    assert way_out in str(refused.value)
