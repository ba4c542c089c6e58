"""Memory that a run takes on this machine's processors, by its plan, before it begins."""

from collections.abc import Iterator

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine, memory_bytes
from dsv3_plugin.numbers import bytes_text, number_of
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.memory.of_recipe import rank_memories
from dsv3_plugin.planner.phases import largest_batches, phases_of
from dsv3_plugin.planner.recipe_schedules import searches
from dsv3_plugin.planner.resolve import resolve
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps
from dsv3_plugin.recipe.schema import Recipe

_ON_PROCESSORS = "cpu"
"""The cluster by which such a run is planned, whatever it will be launched on."""


def beyond_memory(recipe: Recipe, machine: Machine) -> Iterator[str]:
    """A sentence where all ranks together take more memory than the machine has.

    What has a schedule to be searched for is not looked at: that takes long.
    """
    if recipe.on_gpu(machine) or searches(recipe):
        return
    room = memory_bytes()
    if room is not None and (taken := _taken(recipe, machine)) > room:
        yield (
            f"by its plan {number_of(recipe.parallel.processes, 'process', 'processes')} take "
            f"{bytes_text(taken)} of memory, and this machine has {bytes_text(room)}: dsv3 plan "
            "says of what, and what would take less"
        )


def _taken(recipe: Recipe, machine: Machine) -> float:
    """Bytes of all ranks, each at its fullest; 0 where there is no plan."""
    try:
        cluster = load_cluster(_ON_PROCESSORS)
        closed = resolve(recipe, machine, cluster, must_fit=False)
        steps = RecipeSteps(closed, Setting.of(closed, cluster, machine, 1.0), cluster)
        batches = largest_batches(phases_of(closed)).values()
        alike = recipe.parallel.processes / recipe.parallel.pipeline
        return alike * max(
            sum(rank.total for rank in rank_memories(steps, batch)) for batch in batches
        )
    except UserError:  # whoever plans it says so
        return 0
