"""Which device holds which stage of the model: read off the schedule that a recipe names.

Nothing is known twice: a schedule of the smallest size tells how its name places stages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsv3_plugin.schedules.placement import Placement, placement_of
from dsv3_plugin.schedules.registry import SCHEDULES

if TYPE_CHECKING:
    from dsv3_plugin.recipe.schema import Recipe


def placement(recipe: Recipe, name: str) -> Placement:
    """Where the schedule `name` puts the stages, on the devices and in the layout of a recipe.

    Raises:
        UserError: there is no such schedule for these devices.
    """
    devices = recipe.parallel.pipeline
    kind = SCHEDULES.get(name)
    if kind is None:
        assert recipe.schedule_file is not None
        return placement_of(recipe.schedule_file)
    if kind.searched:
        stages = recipe.layout_stages
        return kind.placement(devices, None if stages is None else stages // devices)
    return kind.placement(devices, recipe.pipeline.virtual_stages)
