"""A recipe's steps in time: for any batch of it, how long a step takes and where its seconds go."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.memory.peak import RankOrder, rank_orders
from dsv3_plugin.planner.recipe_schedules import (
    schedule_name,
    schedules_of,
    searched_schedules,
    searches,
)
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage, stages_of
from dsv3_plugin.planner.time.pipeline_times import (
    PipelineTimes,
    pipeline_times,
    repeated_pipeline_times,
)
from dsv3_plugin.planner.time.registered import Registered
from dsv3_plugin.planner.time.stage_times import stage_costs
from dsv3_plugin.planner.time.step import Step, step
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.costs import StageCosts
from dsv3_plugin.schedules.placement import Placement
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.simulate import Program

PAIRS_UPSTREAM = "overlap-moe-expert-parallel-comm"
"""Upstream's flag by which its own schedules run a forward beside a backward."""


@dataclass(frozen=True)
class RecipeSteps:
    """The steps of a recipe whose layout is closed, on a cluster.

    Attributes:
        recipe: the run.
        setting: what of it costs anything.
        cluster: where.
    """

    recipe: Recipe
    setting: Setting
    cluster: Cluster

    @cached_property
    def stages(self) -> list[Stage]:
        """Of the model, in its order."""
        return stages_of(self.recipe.model, self.recipe.stage_layout)

    @cached_property
    def placement(self) -> Placement:
        """Which pipeline rank holds which stages."""
        return self.recipe.placement(self.recipe.pipeline.schedule)

    @cached_property
    def costs(self) -> StageCosts:
        """Seconds of the stages that a schedule names, those of a second copy included."""
        copies = self.placement.copies
        return stage_costs(self.setting, self.cluster, self.stages, copies=copies)

    def micro_batches(self, batch: int) -> int:
        """Of a data-parallel rank, in a step of `batch` sequences."""
        return batch // (self.setting.micro_batch * self.setting.data)

    def registered(self, micro_batches: int) -> Registered | None:
        """The registry's schedule of so many micro-batches; None: it is in a file, or found."""
        recipe = self.recipe
        name = schedule_name(recipe, micro_batches)
        kind = SCHEDULES.get(name)
        if kind is None or kind.searched:
            return None
        pairs = recipe.executor == "upstream" and recipe.passed_flags.get(PAIRS_UPSTREAM) is True
        return Registered(
            name,
            recipe.parallel.pipeline,
            recipe.pipeline.virtual_stages,
            overlap=pairs and kind.make_overlapped is not None,
        )

    def schedule(self, micro_batches: int) -> Schedule:
        """The schedule of so many micro-batches, in overlapped pairs where upstream runs them."""
        registered = self.registered(micro_batches)
        if registered is not None:
            return registered.schedule(micro_batches)
        return self._schedules(micro_batches)

    @cached_property
    def _schedules(self) -> Callable[[int], Schedule]:
        if not searches(self.recipe):
            return schedules_of(self.recipe)
        found = searched_schedules(self.recipe, self.setting, self.cluster)
        return schedules_of(self.recipe, found)

    def pipeline(self, micro_batches: int) -> PipelineTimes:
        """The schedule of so many micro-batches in time."""
        registered = self.registered(micro_batches)
        if registered is None:
            return pipeline_times(Program(self.schedule(micro_batches)), self.costs)

        def timed(number: int) -> PipelineTimes:
            return pipeline_times(registered.program(number), self.costs)

        return repeated_pipeline_times(timed, registered.pp, micro_batches)

    def orders(self, micro_batches: int) -> tuple[RankOrder, ...]:
        """What the order of each rank's actions says of its memory."""
        registered = self.registered(micro_batches)
        if registered is None:
            return rank_orders(self.schedule(micro_batches), self.placement)
        return registered.orders(micro_batches)

    def step(self, batch: int) -> Step:
        """A step of `batch` sequences that neither saves nor evaluates."""
        micro_batches = self.micro_batches(batch)
        return step(
            self.setting,
            self.cluster,
            self.stages,
            self.placement,
            micro_batches,
            self.pipeline(micro_batches),
        )
