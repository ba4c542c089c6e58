"""Which device holds which stage of the model: read off the schedule that a recipe names.

This is where recipes look at schedules, and only at the half of `pipeline` that is data. Nothing
is known twice: a published schedule of the smallest size tells how its name places stages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsv3_plugin.schedules.placement import Placement, placement_of
from dsv3_plugin.schedules.registry import PUBLISHED, interleaved
from dsv3_plugin.schedules.search.search import stage_placement

if TYPE_CHECKING:
    from dsv3_plugin.recipe.schema import Recipe


def placement(recipe: Recipe, name: str) -> Placement:
    """Where the schedule `name` puts the stages, on the devices and in the layout of a recipe.

    Raises:
        UserError: there is no such schedule for these devices.
    """
    devices = recipe.parallel.pipeline
    if name in PUBLISHED:
        return placement_of(PUBLISHED[name](devices, 2 * devices))
    if name == "interleaved":
        return placement_of(interleaved(devices, devices, recipe.pipeline.virtual_stages or 2))
    if name == "search":
        stages = recipe.layout_stages or 2 * devices
        ranks = stage_placement(devices, stages // devices)
        held = (tuple(s for s in range(stages) if ranks[s] == rank) for rank in range(devices))
        return Placement(tuple(held), depth=stages, copies=1)
    assert recipe.schedule_file is not None
    return placement_of(recipe.schedule_file)
