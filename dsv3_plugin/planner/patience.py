"""What a recipe says in seconds and steps, where it does not suit how long a step takes."""

import math
from collections.abc import Iterator

from dsv3_plugin.numbers import time_text
from dsv3_plugin.recipe.schema import Recipe

_STEPS_OF_PATIENCE = 5
_LONGEST_UNSAVED_S, _USUAL_UNSAVED_S = 12 * 3600, 2.5 * 3600
"""Work between two checkpoints, half of which a lost rank costs on average."""


def unsuited(recipe: Recipe, step_seconds: float) -> Iterator[str]:
    """A sentence for each.

    Args:
        recipe: with nothing left open.
        step_seconds: of the longest step, by the plan.
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
    interval = recipe.checkpoint.interval
    unsaved = interval * step_seconds
    if unsaved > _LONGEST_UNSAVED_S and recipe.total_steps > interval:
        yield (
            f"between two checkpoints there are {time_text(unsaved)} of work by its plan "
            f"(checkpoint.interval {interval:,}), which a lost rank may cost: every "
            f"{time_text(_USUAL_UNSAVED_S)} is "
            f"checkpoint.interval={max(1, int(_USUAL_UNSAVED_S / step_seconds))}"
        )
