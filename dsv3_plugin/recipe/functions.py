"""Functions of a person's own that a recipe names by dotted paths: `package.module.function`."""

import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.validation import nearest

FAILURES = (Exception, SystemExit)
"""What a person's code may end with; Ctrl-C is none of them."""


_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def refuse_no_dotted_path(path: str, said: str) -> None:
    """Raise UserError for what is no `package.module.function`, `said` being how it is named."""
    if not _PATH.fullmatch(path):
        raise UserError(f"{said} is no function: write package.module.function.")


def function_at(path: str, said: str, of: str = "one argument") -> Callable[..., Any]:
    """The function at a dotted path.

    Args:
        path: `package.module.function`.
        said: how the sentence names it, with its key.
        of: what it is called with.

    Raises:
        UserError: its module is not there or cannot be imported, or has no such function, or one
            of other arguments.
    """
    refuse_no_dotted_path(path, said)
    module, _, name = path.rpartition(".")
    try:
        imported = importlib.import_module(module)
    except FAILURES as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            _refuse_inside_a_class(module, said)
            raise UserError(f"{said} is not there: {error}.") from None
        raise UserError(
            f"{said} cannot be imported: {raised(error)}{_place(error)}: mend that, or name "
            "another."
        ) from error
    if (function := getattr(imported, name, None)) is None:
        names = [one for one, value in vars(imported).items() if callable(value)]
        way_out = nearest(name, names) or ": write it there, or name another"
        raise UserError(f"{said} is not there: {_file(imported)} has no {name}{way_out}.")
    if isinstance(function, type):
        raise UserError(
            f"{said} is no function: it is a class there: write a function of the module {module} "
            "that calls it."
        )
    if not callable(function):
        kind = "module" if isinstance(function, ModuleType) else type(function).__name__
        raise UserError(
            f"{said} is no function: it is of type {kind} there: write package.module.function."
        )
    _refuse_other_arguments(function, said, of)
    return function


def _refuse_inside_a_class(module: str, said: str) -> None:
    """Raise UserError for what is in a class, of which `module` names the class as its end."""
    above, _, name = module.rpartition(".")
    if isinstance(getattr(sys.modules.get(above), name, None), type):
        raise UserError(
            f"{said} is a method of the class {name}: write a function of the module {above} that "
            "calls it."
        )


def _refuse_other_arguments(function: Callable[..., Any], said: str, of: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of what is not written in Python nobody knows
        return
    try:
        signature.bind(None)
    except TypeError:
        raise UserError(
            f"{said} is called with {of} alone, and takes {signature}: have it take that, and give "
            "others defaults."
        ) from None


def raised(error: BaseException) -> str:
    """What a person's code has raised, in a few words."""
    text = f"{error}".strip()
    return (
        f"{type(error).__name__}: {text}"[:200].removesuffix(".")
        if text
        else (type(error).__name__)
    )


def _place(error: BaseException) -> str:
    """Where a module failed: the last line of a file, whose importer is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" in {_short(error.filename)}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and frame.filename != __file__
    ]
    frames = [frame for frame in frames if frame.filename != importlib.__file__]
    return f" in {_short(frames[-1].filename)}, line {frames[-1].lineno}" if frames else ""


def _file(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return f"the module {module.__name__}" if file is None else _short(file)


def _short(file: str) -> str:
    """A file as it is called from this folder."""
    path, here = Path(os.path.realpath(file)), Path(os.path.realpath(Path.cwd()))
    return str(path.relative_to(here)) if path.is_relative_to(here) else file
