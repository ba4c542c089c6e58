"""What a recipe says in seconds and steps, where it does not suit how long a step takes."""

import math
from collections.abc import Iterator

from dsv3_plugin.machine import Machine
from dsv3_plugin.numbers import bytes_text, time_text
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.time.step import checkpoint_bytes, saving_seconds
from dsv3_plugin.recipe.schema import Recipe

_STEPS_OF_PATIENCE = 5
_LONGEST_UNSAVED_S, _USUAL_UNSAVED_S = 12 * 3600, 2.5 * 3600
"""Work between two checkpoints, half of which a lost rank costs on average."""


def unsuited(
    recipe: Recipe, step_seconds: float, cluster: Cluster, machine: Machine
) -> Iterator[str]:
    """A sentence for each.

    Args:
        recipe: with nothing left open.
        step_seconds: of the longest step, by the plan.
        cluster: where it is meant to run.
        machine: what `auto` in the recipe is resolved for.
    """
    if recipe.parallel.processes > 1:
        own, usual = recipe.pipeline.timeout, 60 * recipe.parallel.timeout_minutes
        patience, least = own or usual, _STEPS_OF_PATIENCE * step_seconds
        if patience < least:
            key = "parallel.timeout_minutes" if own is None else "pipeline.timeout"
            yield (
                f"by its plan a step takes {time_text(step_seconds)}, and ranks wait for each "
                f"other no longer than {time_text(patience)} ({key}): for "
                f"{_STEPS_OF_PATIENCE} steps set pipeline.timeout={60 * math.ceil(least / 60)}"
            )
        setting = Setting.of(recipe, cluster, machine)
        reading, patience = saving_seconds(setting, cluster), 60 * recipe.parallel.timeout_minutes
        if patience < reading:
            size, rate = bytes_text(checkpoint_bytes(setting)), cluster.storage_gb_per_second
            yield (
                f"a start that goes on reads a checkpoint of {size}, {time_text(reading)} at the "
                f"{rate:g} GB/s of each node (storage_gb_per_second of {cluster.name}), and ranks "
                f"wait for each other no longer than {time_text(patience)} then "
                f"(parallel.timeout_minutes): for twice that set "
                f"parallel.timeout_minutes={math.ceil(2 * reading / 60)}"
            )
    interval = recipe.checkpoint.interval
    unsaved = interval * step_seconds
    if unsaved > _LONGEST_UNSAVED_S and recipe.total_steps > interval:
        yield (
            f"between two checkpoints there are {time_text(unsaved)} of work by its plan "
            f"(checkpoint.interval {interval:,}), which a lost rank may cost: every "
            f"{time_text(_USUAL_UNSAVED_S)} is "
            f"checkpoint.interval={max(1, int(_USUAL_UNSAVED_S / step_seconds))}"
        )
