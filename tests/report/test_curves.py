"""The picture of the curves: it is a picture, and it shows what the curves say."""

import pytest

from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.report.curves import plot_curves, sample


@pytest.mark.parametrize("name", ["pretrain/tiny", "pretrain/deepseek-v3"])
def test_all_curves_are_drawn(name, tmp_path):
    plot_curves(load_recipe(name), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_sampled_points_lie_on_the_curve():
    recipe = load_recipe("pretrain/deepseek-v3")
    curve = recipe.curves.learning_rate
    tokens, values = sample(curve, recipe.total_tokens)
    assert tokens == sorted(tokens)
    assert (tokens[0], tokens[-1]) == (0, recipe.total_tokens)
    for at, value in zip(tokens, values, strict=True):
        # Where pieces meet with a jump, both sides are drawn.
        assert value in (curve(at), curve(at - 1)) or at in curve.boundaries
