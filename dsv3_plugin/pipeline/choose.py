"""From a recipe's `pipeline` section to schedules. No torch here."""

from collections.abc import Callable
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.pipeline.actions import Schedule
from dsv3_plugin.pipeline.costs import Costs
from dsv3_plugin.pipeline.model_costs import model_stages
from dsv3_plugin.pipeline.placement import placement_of
from dsv3_plugin.pipeline.schedules import PUBLISHED, interleaved
from dsv3_plugin.pipeline.search import search, stage_placement
from dsv3_plugin.pipeline.validate import read_schedule
from dsv3_plugin.recipe.arguments import layout_of
from dsv3_plugin.recipe.layout import expand
from dsv3_plugin.recipe.schema import Recipe


def schedules_of(recipe: Recipe) -> Callable[[int], Schedule]:
    """The function that gives the recipe's schedule for a number of micro-batches.

    Where the micro-batches of a growing batch are too few for the recipe's schedule, its
    `ramp_schedule` answers.
    """
    wanted = recipe.pipeline

    def schedule(micro_batches: int) -> Schedule:
        try:
            return _named(recipe, wanted.schedule, micro_batches)
        except UserError:
            if wanted.ramp_schedule is None:
                raise
        return _named(recipe, wanted.ramp_schedule, micro_batches)

    return schedule


def _named(recipe: Recipe, name: str, micro_batches: int) -> Schedule:
    """A schedule by its name in a recipe.

    Raises:
        UserError: it does not exist for this number of ranks and micro-batches, or the file is no
            schedule for them.
    """
    pp = recipe.parallel.pipeline
    if name in PUBLISHED:
        return PUBLISHED[name](pp, micro_batches)
    if name == "interleaved":
        return interleaved(pp, micro_batches, recipe.pipeline.virtual_stages or 2)
    if name == "search":
        return _searched(recipe, micro_batches)
    schedule = read_schedule(Path(name))
    placement = placement_of(schedule)
    if (schedule.pp, schedule.num_micro_batches) != (pp, micro_batches):
        raise UserError(
            f"{name} is a schedule of {schedule.pp} ranks and {schedule.num_micro_batches} "
            f"micro-batches; the recipe has {pp} ranks and a batch of {micro_batches}."
        )
    if placement.depth != recipe.stages:
        raise UserError(
            f"{name} has {placement.depth} stages; the recipe lays the model over {recipe.stages}."
        )
    return schedule


def _searched(recipe: Recipe, micro_batches: int) -> Schedule:
    """The best schedule found for the recipe's own stages, holding what DualPipeV would hold.

    Every rank searches for itself: equal seeds find equal schedules.
    """
    pp = recipe.parallel.pipeline
    layers = [stage.count("t") for stage in expand(layout_of(recipe)).split("|")]
    costs = model_stages(recipe.model, layers, pp, Costs(), recipe.data.seq_length)
    held = [0.0] * pp
    for stage, rank in enumerate(stage_placement(pp, len(layers) // pp)):
        held[rank] += costs.activation[stage]
    return search(pp, micro_batches, costs, (pp + 0.5) * max(held)).schedule
