"""Which ranks and steps are rehearsed, and that a folded step holds as much as a whole one."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.memory.peak import RankOrder, rank_orders
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.rehearsal.cases import (
    chosen_ranks,
    company_for,
    company_of,
    fold,
    shortest,
    step_cases,
)
from dsv3_plugin.schedules.placement import placement_of
from dsv3_plugin.schedules.registry import SCHEDULES

MADE = [name for name, kind in SCHEDULES.items() if kind.make is not None]


def _orders(schedule: str, pipeline: int, micro_batches: int) -> tuple[RankOrder, ...]:
    made = SCHEDULES[schedule].schedule(pipeline, micro_batches)
    return rank_orders(made, placement_of(made))


@pytest.mark.parametrize("pipeline", [4, 16])
@pytest.mark.parametrize("schedule", MADE)
def test_a_folded_step_has_the_moments_of_a_whole_one(schedule: str, pipeline: int) -> None:
    # The moments at which a rank could hold most are all that its peak depends on, whatever its
    # stages cost.
    whole = 8 * pipeline
    folded = fold(schedule, pipeline, whole)
    assert folded < whole
    for short, long in zip(
        _orders(schedule, pipeline, folded), _orders(schedule, pipeline, whole), strict=True
    ):
        assert set(short.moments) == set(long.moments)


@pytest.mark.parametrize("schedule", MADE)
def test_a_short_step_is_rehearsed_as_it_is(schedule: str) -> None:
    few = SCHEDULES[schedule].least_micro_batches(4)
    assert fold(schedule, 4, few) == few


def test_the_full_recipe_has_a_step_of_each_schedule() -> None:
    cases = step_cases(load_recipe("pretrain/deepseek-v3", []))
    assert [(case.schedule, case.micro_batches) for case in cases] == [
        ("1f1b_v", 31),
        ("dualpipe_v", 120),
    ]
    assert cases[0].folded == 31
    assert cases[1].folded < 40


def test_ranks_are_one_of_each_kind_or_those_that_are_named() -> None:
    recipe = load_recipe("pretrain/deepseek-v3", [])
    assert chosen_ranks(recipe, None) == [0, 1024, 1920]
    assert chosen_ranks(recipe, "all") == list(range(0, 2048, 128))
    assert chosen_ranks(recipe, "7, 3,7") == [3, 7]
    for words in ("2048", "-1", "x", "1,,2", ""):
        with pytest.raises(UserError, match="give ranks from 0 to 2,047"):
            chosen_ranks(recipe, words)


def test_ranks_of_shared_groups_keep_company_in_the_shortest_step() -> None:
    recipe = load_recipe("pretrain/deepseek-v3", [])
    assert company_of(recipe) == [0, 1, 64, 1024, 1025, 1088]
    least = shortest(step_cases(recipe), 16)
    assert least.schedule == "1f1b_v"
    assert least.folded == SCHEDULES["1f1b_v"].least_micro_batches(16)
    assert company_of(load_recipe("pretrain/tiny", [])) == [0, 1]
    assert company_for(recipe, "all") == company_for(recipe, None) == company_of(recipe)
    assert company_for(recipe, "0,1024") == []
    alone = ["parallel.processes=1", "parallel.expert=1"]
    assert company_of(load_recipe("pretrain/tiny", alone)) == []
