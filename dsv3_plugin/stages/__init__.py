"""The stages of a model's life: one file each, read top to bottom."""

import importlib

from dsv3_plugin.training.stage import Stage


def stage_named(name: str) -> Stage:
    """The stage that a recipe's `stage:` names: `STAGE` of the file of that name."""
    return importlib.import_module(f"{__name__}.{name}").STAGE
