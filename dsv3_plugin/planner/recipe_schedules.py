"""From a recipe's `pipeline` section to schedules: plans ask before a run, and then its ranks."""

import functools
from collections.abc import Callable

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.stage_costs import model_stages
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.stage_layout import expand
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.costs import Costs
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.search.search import search


def schedules_of(recipe: Recipe) -> Callable[[int], Schedule]:
    """The function that gives the recipe's schedule for a number of micro-batches.

    Where the micro-batches of a growing batch are too few for the recipe's schedule, its
    `ramp_schedule` answers. It is asked in many places and remembers its answers, since a search
    takes its time.
    """
    wanted = recipe.pipeline

    @functools.cache
    def schedule(micro_batches: int) -> Schedule:
        try:
            return _named(recipe, wanted.schedule, micro_batches)
        except UserError:
            if wanted.ramp_schedule is None:
                raise
        return _named(recipe, wanted.ramp_schedule, micro_batches)

    return schedule


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


def _named(recipe: Recipe, name: str, micro_batches: int) -> Schedule:
    """A schedule by its name in a recipe.

    Raises:
        UserError: it does not exist for this number of ranks and micro-batches.
    """
    pp = recipe.parallel.pipeline
    kind = SCHEDULES.get(name)
    if kind is not None and kind.searched:
        return _searched(recipe, micro_batches)
    if kind is not None:
        return kind.schedule(pp, micro_batches, recipe.pipeline.virtual_stages)
    schedule = recipe.schedule_file
    assert schedule is not None
    if schedule.num_micro_batches != micro_batches:
        raise UserError(
            f"{name} is a schedule of {schedule.num_micro_batches} micro-batches; the batch has "
            f"{micro_batches}."
        )
    return schedule


def _searched(recipe: Recipe, micro_batches: int) -> Schedule:
    """The best schedule found for the recipe's own stages, holding what DualPipeV would hold.

    The effort grows with the schedule: a small one is as good after a second.
    """
    pp = recipe.parallel.pipeline
    layers = [stage.count("t") for stage in expand(recipe.stage_layout).split("|")]
    costs = model_stages(recipe.model, layers, pp, Costs(), recipe.data.seq_length)
    effort = min(1.0, pp * micro_batches / _SIZE_OF_FULL_EFFORT)
    return search(pp, micro_batches, costs, effort=effort).schedule


_SIZE_OF_FULL_EFFORT = 1000  # ranks x micro-batches
