"""What is said of a recipe before it runs."""

import io

import pytest
from rich.console import Console

from dsv3_plugin.launch.needs import missing_texts
from dsv3_plugin.launch.summary import summary
from dsv3_plugin.recipe.load import load_recipe


def told(*overrides: str, of: str = "rl/tiny") -> list[str]:
    out = io.StringIO()
    Console(file=out, width=200).print(summary(load_recipe(of, [*overrides])))
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


def test_steps_that_nobody_has_counted_are_no_promise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [steps] = [line for line in told(of="sft/tiny") if line.startswith("steps")]
    assert steps.endswith("by data.sequences; they are counted when the data are built")


def test_a_template_that_is_not_there_is_missed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("sft/tiny", ["data.template=nope.jinja", "data.made_by=null"])
    assert any("data.template: nope.jinja does not exist" in one for one in missing_texts(recipe))
