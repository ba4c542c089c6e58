"""A reward by any Python function, named by its dotted path."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from dsv3_plugin.recipe.functions import function_at
from dsv3_plugin.rewards.verdict import Attempt


def named(path: str) -> Callable[[Attempt], Any]:
    """A function of an attempt that a worker can call.

    Args:
        path: `package.module.function`; the function gets an `Attempt` and gives a number.

    Raises:
        UserError: there is none.
    """
    function_at(path, f"The reward '{path}'", "an attempt")
    module, _, name = path.rpartition(".")
    return partial(_called, module, name)


def _called(module: str, name: str, attempt: Attempt) -> Any:
    return getattr(importlib.import_module(module), name)(attempt)
