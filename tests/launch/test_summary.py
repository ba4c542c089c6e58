"""What is said of a recipe before it runs."""

import io

import pytest
from rich.console import Console

from dsv3_plugin.launch.summary import summary
from dsv3_plugin.recipe.load import load_recipe


def told(*overrides: str) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=200).print(summary(load_recipe("rl/tiny", [*overrides])))
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("overrides", "rewards"),
    [
        ([], "match"),
        (["rewards=null"], "accuracy"),
        (["rewards={format: {weight: 0.2}}"], "match + 0.2 × format"),
    ],
)
def test_rewards_and_answers_are_said(overrides: list[str], rewards: str):
    said = told(*overrides)
    assert f"rewards {rewards}" in said
    assert "answers 32 prompts × 16 in a round, of 4 tokens at most" in said
