"""A run with some of its keys changed, weighed: whether it fits, and how long its step takes."""

from dataclasses import dataclass

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.memory.of_recipe import rank_memories
from dsv3_plugin.planner.phases import largest_batches, phases_of
from dsv3_plugin.planner.resolve import resolve
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps
from dsv3_plugin.recipe.load import changed
from dsv3_plugin.recipe.schema import Recipe


@dataclass(frozen=True)
class Change:
    """A change of a run.

    Attributes:
        overrides: what is changed.
        recipe: the run with it, closed.
        total: bytes that its fullest rank needs.
        seconds: of a step of its last batch, which neither saves nor evaluates.
    """

    overrides: tuple[str, ...]
    recipe: Recipe
    total: int
    seconds: float


def tried(steps: RecipeSteps, overrides: tuple[str, ...], machine: Machine) -> Change | None:
    """A change; None where a rule forbids it, or no layout of it fits."""
    try:
        recipe = resolve(changed(steps.recipe, overrides), machine, steps.cluster)
        setting = Setting.of(recipe, steps.cluster, machine, steps.setting.imbalance)
        others = RecipeSteps(recipe, setting, steps.cluster)
        phases = phases_of(recipe)
        total = max(
            memory.total
            for batch in largest_batches(phases).values()
            for memory in rank_memories(others, batch)
        )
        last, _ = phases[-1].batches[-1]
        return Change(overrides, recipe, total, others.step(last).seconds)
    except UserError:
        return None
