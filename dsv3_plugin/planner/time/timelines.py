"""The pipeline of one step in time, action by action: for a picture, not for a sum."""

from dataclasses import dataclass

from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.memory.of_recipe import rank_memories
from dsv3_plugin.planner.memory.ranks import RankMemory
from dsv3_plugin.planner.resolve import resolve
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps
from dsv3_plugin.planner.time.stage_times import Parts
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.schedules.simulate import Links, simulate
from dsv3_plugin.schedules.timeline import Timeline


def step_timeline(
    recipe: Recipe, cluster: Cluster, machine: Machine, batch: int, imbalance: float = 1.0
) -> Timeline:
    """A step of `batch` sequences, in seconds, under the assumptions of `make_plan`."""
    steps = _steps(recipe, cluster, machine, imbalance)
    return simulate(steps.schedule(steps.micro_batches(batch)), steps.costs)


@dataclass(frozen=True)
class PipelineStep:
    """A step of a recipe's pipeline on a cluster.

    Attributes:
        cluster: where.
        batch: its sequences.
        timeline: of its schedule, in seconds.
        ideal: seconds of the schedule if no message waited for another.
        memories: of each pipeline rank.
        beyond_mean: seconds by part that the rank that computes longest has beyond the mean of all
            ranks; waiting left out.
    """

    cluster: Cluster
    batch: int
    timeline: Timeline
    ideal: float
    memories: tuple[RankMemory, ...]
    beyond_mean: Parts

    @property
    def busy(self) -> list[float]:
        """Seconds that each rank computes, or sends what nothing hides."""
        return [self.timeline.makespan - idle for idle in self.timeline.idle_per_rank]


def pipeline_step(
    recipe: Recipe,
    cluster: Cluster,
    machine: Machine,
    micro_batches: int | None = None,
    links: Links = "ideal",
) -> PipelineStep:
    """A step of a recipe's pipeline, under the assumptions of `make_plan`.

    Args:
        recipe: the run; what it leaves open is closed as training would close it.
        cluster: where it runs.
        machine: what `auto` in the recipe is resolved for.
        micro_batches: of a data-parallel rank; None: those of the run's last batch.
        links: how messages travel.

    Raises:
        UserError: the recipe's schedule does not exist for so many micro-batches.
    """
    steps = _steps(recipe, cluster, machine)
    if micro_batches is None:
        micro_batches = steps.micro_batches(steps.recipe.batch_schedule.last)
    batch = micro_batches * steps.setting.micro_batch * steps.setting.data
    schedule = steps.schedule(micro_batches)
    timeline = ideal = simulate(schedule, steps.costs)
    if links != "ideal":
        timeline = simulate(schedule, steps.costs, links)
    step = steps.step(batch)
    beyond = Parts({part: value - step.mean_parts[part] for part, value in step.parts.items()})
    del beyond["pipeline"]
    memories = tuple(rank_memories(steps, batch))
    return PipelineStep(cluster, batch, timeline, ideal.makespan, memories, beyond)


def _steps(
    recipe: Recipe, cluster: Cluster, machine: Machine, imbalance: float = 1.0
) -> RecipeSteps:
    closed = resolve(recipe, machine, cluster, must_fit=False)
    return RecipeSteps(closed, Setting.of(closed, cluster, machine, imbalance), cluster)
