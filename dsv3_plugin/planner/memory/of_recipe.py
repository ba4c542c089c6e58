"""The memory of each pipeline rank of a recipe, at its fullest."""

from dsv3_plugin.planner.memory.ranks import RankMemory, rank_memory
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps


def rank_memories(steps: RecipeSteps, batch: int) -> list[RankMemory]:
    """Of all pipeline ranks, in a step of `batch` sequences."""
    placement = steps.placement
    orders = steps.orders(steps.micro_batches(batch))
    on_gpu = steps.cluster.host == "gpu"
    return [
        rank_memory(
            steps.setting,
            tuple(steps.stages[placement.model_stage(stage)] for stage in chunks),
            order,
            on_gpu,
        )
        for chunks, order in zip(placement.chunks, orders, strict=True)
    ]
