"""A reward by any Python function, named by its dotted path."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from dsv3_plugin.errors import UserError
from dsv3_plugin.rewards.verdict import Attempt


def named(path: str) -> Callable[[Attempt], Any]:
    """A function of an attempt that a worker can call.

    Args:
        path: `package.module.function`; the function gets an `Attempt` and gives a number.

    Raises:
        UserError: there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"The reward '{path}' is not there: {error}.") from None
    except Exception as error:  # whatever a module does that is not ours
        why = f"{type(error).__name__}: {error}"[:200]
        raise UserError(f"The reward '{path}' cannot be imported: {why}.") from error
    if not callable(function):
        raise UserError(f"The reward '{path}' is no function: write package.module.function.")
    return partial(_called, module, name)


def _called(module: str, name: str, attempt: Attempt) -> Any:
    return getattr(importlib.import_module(module), name)(attempt)
