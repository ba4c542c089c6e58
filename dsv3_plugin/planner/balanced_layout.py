"""The balanced layout of a recipe: by its stages' seconds on a cluster, under its schedule."""

import functools
from collections.abc import Sequence

from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.division import Division
from dsv3_plugin.planner.layout import balanced
from dsv3_plugin.planner.recipe_schedules import schedules_of
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stage_times import stage_costs, stage_times
from dsv3_plugin.planner.stages import Stage, layout_of
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.costs import Costs, even_stages
from dsv3_plugin.schedules.placement import Placement
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.simulate import Program

_PASSES = 240_000
"""Passes of a stage that may be simulated to choose among layouts: a third of a second."""
_MOST = 50
"""Layouts that may be simulated; more hardly find a shorter step."""


def balanced_layout(recipe: Recipe, machine: Machine, cluster: Cluster) -> str:
    """The layout string that gives the recipe's ranks equal work on a cluster.

    Raises:
        UserError: no layout fits into the memory of its devices.
    """
    setting = Setting.of(recipe, cluster, machine)
    placement = recipe.placement(recipe.pipeline.schedule)
    schedule = _schedule_of_last_batch(recipe, placement)
    program = Program(schedule)
    passes = placement.depth * schedule.num_micro_batches

    @functools.cache
    def alone(stage: Stage) -> float:
        return stage_times(setting, cluster, stage).total

    def seconds(stages: Sequence[Stage]) -> float:
        return sum(map(alone, stages))

    def step(stages: Sequence[Stage]) -> float:
        return program.makespan(stage_costs(setting, cluster, stages, copies=placement.copies))

    model = recipe.model
    division = Division(
        kinds=tuple(model.moe_layer_freq),
        mtp=model.mtp_num_layers or 0,
        ranks=tuple(tuple(map(placement.model_stage, held)) for held in placement.chunks),
        seconds=seconds,
        step=step,
    )
    found = balanced(division, min(_MOST, max(1, _PASSES // passes)))
    return layout_of(found.layers, division.mtp)


def _schedule_of_last_batch(recipe: Recipe, placement: Placement) -> Schedule:
    """The schedule of most of the run; in place of one to be searched for, the best published."""
    batch = recipe.batch_schedule.entries[-1][1]
    micro_batches = batch // (recipe.training.micro_batch_size * recipe.data_parallel)
    kind = recipe.schedule_kind
    if kind is None or not kind.searched:
        return schedules_of(recipe)(micro_batches)
    pp = recipe.parallel.pipeline
    published = [
        other.schedule(pp, micro_batches)
        for other in SCHEDULES.values()
        if not other.searched
        and other.exists(pp, micro_batches)
        and other.placement(pp) == placement
    ]
    return min(published, key=lambda one: Program(one).makespan(even_stages(one, Costs())))
