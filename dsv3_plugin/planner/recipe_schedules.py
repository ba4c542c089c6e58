"""From a recipe's `pipeline` section to schedules: plans ask before a run, and then its ranks.

A schedule that has to be searched for is, with the seconds of the recipe's own stages, and kept in
the run's folder (`found_schedules.py`), where a plan, the launcher and the ranks find it.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.numbers import number_of
from dsv3_plugin.planner.cluster import Cluster, load_cluster
from dsv3_plugin.planner.found_schedules import Question, find_or_search
from dsv3_plugin.planner.memory.room import shares_of_room
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import stages_of
from dsv3_plugin.planner.time.stage_times import stage_costs
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.costs import in_units
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.terminal.lines import note

Schedules = Callable[[int], Schedule]
"""Gives the schedule of a number of micro-batches; raises UserError where there is none."""


def schedules_of(recipe: Recipe, searched: Schedules | None = None) -> Schedules:
    """The function that gives the recipe's schedule for a number of micro-batches.

    Where the micro-batches of a growing batch are too few for the recipe's schedule, its
    `ramp_schedule` answers. It is asked in many places and remembers its answers, since a search
    takes its time.

    Args:
        recipe: the run, its layout closed if a schedule of it is searched for.
        searched: gives those that have to be searched for (`searched_schedules`), if any has.
    """
    wanted = recipe.pipeline

    @functools.cache
    def schedule(micro_batches: int) -> Schedule:
        try:
            return _named(recipe, wanted.schedule, micro_batches, searched)
        except UserError:
            if wanted.ramp_schedule is None:
                raise
        return _named(recipe, wanted.ramp_schedule, micro_batches, searched)

    return schedule


def schedules_on(recipe: Recipe, machine: Machine) -> Schedules:
    """The same where the recipe runs, its layout closed."""
    if not searches(recipe):
        return schedules_of(recipe)
    cluster = load_cluster(recipe.cluster_on(machine))
    setting = Setting.of(recipe, cluster, machine)
    return schedules_of(recipe, searched_schedules(recipe, setting, cluster))


def searched_schedules(recipe: Recipe, setting: Setting, cluster: Cluster) -> Schedules:
    """The function that gives the best schedules found for the recipe's stages on a cluster.

    Args:
        recipe: the run, its layout closed.
        setting: what of it costs anything.
        cluster: where.
    """
    pp = setting.pipeline
    stages = stages_of(recipe.model, recipe.stage_layout)
    costs, limit = in_units(stage_costs(setting, cluster, stages), pp), None
    placement = recipe.placement(recipe.pipeline.schedule)
    shares = shares_of_room(setting, cluster, stages, placement)
    if shares is not None:
        costs, limit = replace(costs, activation=shares), 1.0

    def searched(micro_batches: int) -> Schedule:
        # A small schedule is as good after a second.
        effort = min(1.0, pp * micro_batches / _SIZE_OF_FULL_EFFORT)
        question = Question(pp, micro_batches, costs, limit, effort=effort)
        return find_or_search(question, recipe.run_folder.schedules, _tell)

    return searched


_SIZE_OF_FULL_EFFORT = 1000
"""Ranks times micro-batches."""


def _tell(sentence: str) -> None:
    note(f"dsv3: {sentence}")


def schedule_name(recipe: Recipe, micro_batches: int) -> str:
    """The name of the schedule that so many micro-batches are run by."""
    wanted, kind = recipe.pipeline, recipe.schedule_kind
    if kind is not None:
        exists = kind.exists(recipe.parallel.pipeline, micro_batches)
    else:
        assert recipe.schedule_file is not None
        exists = recipe.schedule_file.num_micro_batches == micro_batches
    return wanted.schedule if exists or wanted.ramp_schedule is None else wanted.ramp_schedule


def searches(recipe: Recipe) -> bool:
    """Whether a schedule of the recipe has to be searched for."""
    names = (recipe.pipeline.schedule, recipe.pipeline.ramp_schedule)
    return any(name in SCHEDULES and SCHEDULES[name].searched for name in names)


def _named(recipe: Recipe, name: str, micro_batches: int, searched: Schedules | None) -> Schedule:
    """A schedule by its name in a recipe.

    Raises:
        UserError: it does not exist for this number of ranks and micro-batches.
    """
    pp = recipe.parallel.pipeline
    kind = SCHEDULES.get(name)
    if kind is not None and kind.searched:
        assert searched is not None, "who asks for a schedule to be searched for says how"
        return searched(micro_batches)
    if kind is not None:
        return kind.schedule(pp, micro_batches, recipe.pipeline.virtual_stages)
    schedule = recipe.schedule_file
    assert schedule is not None
    if schedule.num_micro_batches != micro_batches:
        raise UserError(
            f"{name} is a schedule of "
            f"{number_of(schedule.num_micro_batches, 'micro-batch', 'micro-batches')}; the batch "
            f"has {micro_batches}."
        )
    return schedule
