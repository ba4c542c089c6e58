"""The balanced layout of a recipe: by its stages' seconds on a cluster, under its schedule."""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Self

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.numbers import bytes_text
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.layout.balanced import balanced
from dsv3_plugin.planner.layout.division import Division
from dsv3_plugin.planner.layout.filling import DoesNotFit
from dsv3_plugin.planner.memory.peak import RankOrder, rank_orders
from dsv3_plugin.planner.memory.ranks import rank_memory
from dsv3_plugin.planner.recipe_schedules import Schedules, schedule_name, schedules_of
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage, layout_of
from dsv3_plugin.planner.time.pipeline_times import (
    PipelineTimes,
    repeated_pipeline_times,
    simulated,
)
from dsv3_plugin.planner.time.stage_times import stage_costs, stage_times
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.costs import Costs, StageCosts, sized_stages
from dsv3_plugin.schedules.placement import Placement
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.simulate import Program

_PASSES = 240_000
"""Passes of a stage that may be simulated to choose among layouts: a third of a second."""
_MOST = 50
"""Layouts that may be simulated; more hardly find a shorter step."""


def balanced_layout(
    recipe: Recipe, machine: Machine, cluster: Cluster, *, must_fit: bool = True
) -> str:
    """The layout string that gives the recipe's ranks equal work on a cluster.

    Args:
        recipe: the run.
        machine: where it will run.
        cluster: what it is planned for.
        must_fit: refuse where no layout fits into memory, instead of looking at time alone.

    Raises:
        UserError: no layout fits into the memory of the cluster's devices.
    """
    setting = Setting.of(recipe, cluster, machine)
    placement = recipe.placement(recipe.pipeline.schedule)
    pipeline = _Pipeline.of(recipe, placement)

    @functools.cache
    def alone(stage: Stage) -> float:
        return stage_times(setting, cluster, stage).total

    def seconds(stages: Sequence[Stage]) -> float:
        return sum(map(alone, stages))

    def step(stages: Sequence[Stage]) -> float:
        if simulations <= 1:  # a schedule so long that it tells nothing but the slowest rank
            return pipeline.micro_batches * max(
                seconds([stages[stage] for stage in held]) for held in division.ranks
            )
        return pipeline.seconds(stage_costs(setting, cluster, stages, copies=placement.copies))

    orders = _orders(pipeline.schedule, placement)

    @functools.cache
    def held(rank: int, stages: tuple[Stage, ...]) -> int:
        return rank_memory(setting, stages, orders[rank], cluster.host == "gpu").total

    model = recipe.model
    division = Division(
        kinds=tuple(model.moe_layer_freq),
        mtp=model.mtp_num_layers or 0,
        ranks=tuple(tuple(map(placement.model_stage, held)) for held in placement.chunks),
        seconds=seconds,
        step=step,
        memory=lambda rank, stages: held(rank, tuple(stages)),
        limit=cluster.memory_bytes,
    )
    simulations = min(_MOST, _PASSES // (placement.depth * sum(pipeline.numbers)))
    try:
        found = balanced(division, max(1, simulations))
    except DoesNotFit as refusal:
        if must_fit:
            raise UserError(_too_small(recipe, cluster, refusal)) from refusal
        found = balanced(replace(division, limit=math.inf), max(1, simulations))
    return layout_of(found.layers, division.mtp)


def _too_small(recipe: Recipe, cluster: Cluster, refusal: DoesNotFit) -> str:
    return (
        f"{recipe.name}: pipeline.layout: balanced finds none that fits into the "
        f"{bytes_text(cluster.memory_bytes)} of {cluster.gpu} ({cluster.name}): pipeline rank "
        f"{refusal.rank} would need {bytes_text(refusal.needed)}; dsv3 plan names the nearest "
        "change with which it fits."
    )


class _Pipeline:
    """The schedule of most of a run, timed for any stages.

    Attributes:
        micro_batches: of the run's largest batch.
        numbers: of micro-batches, of the schedules that are simulated for one time.
    """

    def __init__(self, schedules: Schedules, pp: int, micro_batches: int, *, repeats: bool) -> None:
        """A schedule.

        Args:
            schedules: it, by number of micro-batches.
            pp: ranks of the pipeline.
            micro_batches: of the run's largest batch.
            repeats: whether it exists for any number, and repeats itself.
        """
        self.micro_batches, self._pp = micro_batches, pp
        self._schedules = schedules
        self.numbers = simulated(pp, micro_batches) if repeats else (micro_batches,)
        self._program = functools.cache(lambda number: _program(schedules(number)))

    @property
    def schedule(self) -> Schedule:
        """The longest that is simulated; as much is held at once in any longer one."""
        return self._schedules(self.numbers[-1])

    @classmethod
    def of(cls, recipe: Recipe, placement: Placement) -> Self:
        """That of a recipe; in place of one to be searched for, the best of those published."""
        batch = recipe.batch_schedule.last
        micro_batches = batch // (recipe.training.micro_batch_size * recipe.data_parallel)
        pp = recipe.parallel.pipeline
        kind = SCHEDULES.get(schedule_name(recipe, micro_batches))
        if kind is None or not kind.searched:
            return cls(schedules_of(recipe), pp, micro_batches, repeats=kind is not None)
        published = [
            cls(partial(other.schedule, pp), pp, micro_batches, repeats=True)
            for other in SCHEDULES.values()
            if not other.searched
            and other.exists(pp, micro_batches)
            and other.placement(pp) == placement
        ]
        even = sized_stages(Costs(), [pp / placement.depth] * placement.depth)
        return min(published, key=lambda one: one.seconds(even))

    def seconds(self, costs: StageCosts) -> float:
        """Of a step's pipeline."""

        def timed(number: int) -> PipelineTimes:
            return PipelineTimes(self._program(number).makespan(costs), ())

        if len(self.numbers) == 1:
            return timed(*self.numbers).makespan
        return repeated_pipeline_times(timed, self._pp, self.micro_batches).makespan


# A search balances many ways of dividing a recipe, of which few differ in their schedule.
@functools.lru_cache(maxsize=64)
def _program(schedule: Schedule) -> Program:
    return Program(schedule)


@functools.lru_cache(maxsize=64)
def _orders(schedule: Schedule, placement: Placement) -> tuple[RankOrder, ...]:
    return rank_orders(schedule, placement)
