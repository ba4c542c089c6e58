"""The pipeline of one step in time, action by action: for a picture, not for a sum."""

from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.resolve import resolve
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.schedules.simulate import simulate
from dsv3_plugin.schedules.timeline import Timeline


def step_timeline(
    recipe: Recipe, cluster: Cluster, machine: Machine, batch: int, imbalance: float = 1.0
) -> Timeline:
    """A step of `batch` sequences, in seconds, under the assumptions of `make_plan`."""
    closed = resolve(recipe, machine, cluster, must_fit=False)
    steps = RecipeSteps(closed, Setting.of(closed, cluster, machine, imbalance), cluster)
    return simulate(steps.schedule(steps.micro_batches(batch)), steps.costs)
