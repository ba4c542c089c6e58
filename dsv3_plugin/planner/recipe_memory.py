"""The memory of each pipeline rank of a recipe, at its fullest."""

from dataclasses import dataclass

from dsv3_plugin.planner.memory.states import fp8_copies, gradients, optimizer, weights
from dsv3_plugin.planner.plan import MemoryPart, Moment
from dsv3_plugin.planner.recipe_steps import RecipeSteps
from dsv3_plugin.planner.stages import Stage


@dataclass(frozen=True)
class RankMemory:
    """What a pipeline rank needs.

    Attributes:
        stages: what it holds.
        parts: part → bytes, at the moment that needs most.
        moments: moment → bytes in all.
    """

    stages: tuple[Stage, ...]
    parts: dict[MemoryPart, int]
    moments: dict[Moment, int]

    @property
    def total(self) -> int:
        return max(self.moments.values())


def rank_memories(steps: RecipeSteps, batch: int) -> list[RankMemory]:
    """Of all pipeline ranks, in a step of `batch` sequences."""
    found = []
    for chunks in steps.placement.chunks:
        stages = tuple(steps.stages[steps.placement.model_stage(stage)] for stage in chunks)
        parts: dict[MemoryPart, int] = {
            "weights": weights(steps.setting, stages),
            "gradients": gradients(steps.setting, stages),
            "optimizer": optimizer(steps.setting, stages),
            "fp8_copies": fp8_copies(steps.setting, stages),
        }
        found.append(RankMemory(stages, parts, {"step": sum(parts.values())}))
    return found
