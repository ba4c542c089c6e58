"""Recipes side by side."""

import io

import pytest

from dsv3_plugin.planner.plan import Limit, Plan
from dsv3_plugin.recipe.load import load_model
from dsv3_plugin.report.plan.case import Case
from dsv3_plugin.report.plan.comparison import comparison
from dsv3_plugin.terminal.console import Console
from tests.plans import GB, cluster, phase, plan


def case(name: str, made: Plan | None = None) -> Case:
    return Case(name, load_model("deepseek-v3"), 4096, made)


def test_every_recipe_has_a_column():
    over = plan(phase(activations=60 * GB), limit=Limit(False, "it is full"))
    (grid,) = comparison(
        [case("a", plan()), case("b", over), case("c", plan(cluster=cluster(currency="EUR")))]
    )
    assert grid.header == ("", "a", "b", "c")
    rows = {label: texts for label, *texts in grid.rows}
    assert rows["parameters"] == ["684.5B"] * 3
    assert rows["cost"] == ["$4.665M", "$4.551M", "EUR 4.665M"]
    assert rows["GB, fullest rank"] == ["72.0", "92.0", "72.0"]
    assert rows["fits"] == ["yes", "no", "yes"]
    assert rows["time"] == ["47d10h", "46d07h", "47d10h"]


def test_a_model_has_its_counts_alone():
    (both,) = comparison([case("a", plan()), case("deepseek-v3")])
    assert ("FLOPs/token", "260.6B", "260.6B") in both.rows
    assert ("GPUs", "2,048", "") in both.rows
    (models,) = comparison([case("deepseek-v3"), case("deepseek-v3")])
    assert len(models.rows) == 3


def test_a_long_name_is_folded_where_it_has_parts():
    (grid,) = comparison([case("pretrain/deepseek-v3 parallel.pipeline=8"), case("x" * 30)])
    assert grid.header[1].split("\n") == ["pretrain/", "deepseek-v3", "parallel.", "pipeline=8"]
    assert grid.header[2].split("\n") == ["x" * 12, "x" * 12, "x" * 6]


@pytest.mark.parametrize("number", [2, 5, 6, 11])
def test_any_number_of_recipes_fits_a_terminal(number):
    screen = io.StringIO()
    made = plan(cluster=cluster(currency="EUR"))
    for grid in comparison([case(f"pretrain/deepseek-v3 n={n}", made) for n in range(number)]):
        Console(screen, width=100).print(grid.table())
    assert max(map(len, screen.getvalue().splitlines())) <= 100
    assert screen.getvalue().count("EUR 4.665M") == number
