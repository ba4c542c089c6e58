"""Whether a run's layout lets ranks wait that another layout would give work."""

from dataclasses import dataclass

from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.changes import tried
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.layout.balanced import OF_BOUND
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sections import BALANCED


@dataclass(frozen=True)
class IdlingLayout:
    """A layout with which a step takes longer than with the balanced one.

    Attributes:
        rank: the pipeline rank that is busy longest.
        of_mean: how long that is, in means of all ranks.
        seconds: of a step of the run's last batch, which neither saves nor evaluates.
        balanced: the layout that `pipeline.layout=balanced` is.
        balanced_seconds: of a step with it.
    """

    rank: int
    of_mean: float
    seconds: float
    balanced: str
    balanced_seconds: float


def idling_layout(
    recipe: Recipe, cluster: Cluster, machine: Machine, imbalance: float = 1.0
) -> IdlingLayout | None:
    """What the layout of a run costs it, beside the balanced one under the same schedule.

    Layers are whole, so no layout is quite even, and a schedule idles with any: the balanced one
    says how little both can be. It is itself content with a slowest rank that has `OF_BOUND` of the
    least that it can have; steps nearer than that are not told apart.

    Args:
        recipe: the run, closed.
        cluster, machine: where it runs.
        imbalance: load of the busiest rank's experts over the mean.

    Returns:
        None where a step is as short as with the balanced layout, or that one does not fit.
    """
    if recipe.parallel.pipeline == 1:
        return None
    steps = RecipeSteps(recipe, Setting.of(recipe, cluster, machine, imbalance), cluster)
    other = tried(steps, (f"pipeline.layout={BALANCED}",), machine)
    if other is None or other.total > cluster.memory_bytes:
        return None
    step = steps.step(recipe.batch_schedule.last)
    if step.seconds <= OF_BOUND * other.seconds:
        return None
    busiest = max(step.busy)
    return IdlingLayout(
        rank=step.busy.index(busiest),
        of_mean=busiest * len(step.busy) / sum(step.busy),
        seconds=step.seconds,
        balanced=other.recipe.pipeline.layout or "",
        balanced_seconds=other.seconds,
    )
