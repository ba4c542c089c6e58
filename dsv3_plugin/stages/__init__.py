"""The stages of a model's life: one file each, read top to bottom."""

import importlib
from collections.abc import Callable

from dsv3_plugin.training.run import Run
from dsv3_plugin.training.stage import Stage


def stage_named(name: str) -> Callable[[Run], Stage]:
    """What makes the stage that a recipe's `stage:` names: the function of the file of that name.

    Each brings what it needs along when it is asked for, and not before.
    """
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)
