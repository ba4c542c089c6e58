"""Which ranks and steps are rehearsed, and that a folded step holds as much as a whole one."""

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.memory.peak import RankOrder, rank_orders
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.rehearsal import recorded_step
from dsv3_plugin.rehearsal.cases import (
    chosen_ranks,
    company_for,
    company_of,
    fold,
    shortest,
    step_cases,
)
from dsv3_plugin.rehearsal.recorded_group import Recording
from dsv3_plugin.rehearsal.storages import Storages
from dsv3_plugin.schedules.actions import INPUT
from dsv3_plugin.schedules.placement import placement_of
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.upstream import cpu_host

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
def test_a_folded_step_is_as_full_as_a_whole_one(
    schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every rank of four, by what is alive while the run's own executor takes the step."""
    cpu_host.enable()
    whole = 24
    folded = fold(schedule, 4, whole)
    assert folded < whole
    short, long = (_fullest(schedule, number, monkeypatch) for number in (folded, whole))
    assert short == long
    assert min(short) > SIZE


SIZE = 1000
"""Bytes that the first stage keeps of a micro-batch; the second keeps twice as many."""


def _fullest(schedule: str, micro_batches: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The most bytes that are alive on each rank of four in a step."""
    most: list[int] = []
    take = recorded_step._take_step

    class Holding(recorded_step._Shapes):
        """Keeps of each micro-batch from its forward to its backward, or to its weights' gradients.

        The latter are owed of the operands alone.
        """

        def _forward(self, task: Any) -> Any:
            part, result = super()._forward(task)
            kept[part.stage, part.micro_batch] = _bytes(SIZE * (1 + part.stage))
            return part, result

        def _backward(self, task: Any) -> Any:
            part, gradient = super()._backward(task)
            del kept[part.stage, part.micro_batch]
            if part.kind == INPUT:
                owed[part.stage].append(_bytes(SIZE // 3 + part.stage))
            return part, gradient

    def pay(self: Any) -> None:
        owed[self._stage].pop(0)

    kept: dict[tuple[int, int], torch.Tensor] = {}
    owed: defaultdict[int, list[torch.Tensor]] = defaultdict(list)

    def watched(*arguments: Any) -> Any:
        storages = Storages("cpu")
        with _Seen(storages):
            record = take(*arguments)
        most.append(storages.most)
        assert record.failed is None
        assert not kept
        assert not any(owed.values())
        return record

    with monkeypatch.context() as patch:
        patch.setattr(recorded_step, "_take_step", watched)
        patch.setattr(recorded_step, "_Shapes", Holding)
        patch.setattr(recorded_step._Owed, "pay_oldest", pay)
        patch.setattr(Recording, "number", lambda self, tensor: 0)  # which would keep it
        made = SCHEDULES[schedule].schedule(4, micro_batches)
        recorded_step.recorded_steps(made, (16, 1, 4), torch.float32)
    return most


def _bytes(number: int) -> torch.Tensor:
    return torch.empty(number, dtype=torch.uint8)


class _Seen(TorchDispatchMode):
    """Tells storages of every operation."""

    def __init__(self, storages: Storages) -> None:
        super().__init__()
        self.storages = storages

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **kwargs or {})
        self.storages.issued(function, args, kwargs or {}, result)
        return result


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
