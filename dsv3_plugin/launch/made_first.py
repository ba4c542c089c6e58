"""What a run needs is made before it, where its recipe says how: its data, by a function, and its
parent, by a recipe of its own.

So a recipe that begins where others end is one command on a machine that has nothing yet. What is
there is left as it is, and a parent that was stopped goes on, where its recipe is the same.
"""

import contextlib
import inspect
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from dsv3_plugin.data.progress import Progress
from dsv3_plugin.errors import UserError
from dsv3_plugin.files import full_disk
from dsv3_plugin.files.named import named
from dsv3_plugin.launch.conversations import prepare_data, uncounted
from dsv3_plugin.launch.ending import is_done
from dsv3_plugin.launch.needs import looking_here, missing_texts, refuse_no_package, unmade
from dsv3_plugin.launch.parent_run import trained_otherwise
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.continued import Continued
from dsv3_plugin.recipe.functions import (
    FAILURES,
    function_at,
    raised,
    refuse_no_dotted_path,
)
from dsv3_plugin.recipe.load import find, load_recipe
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.terminal.lines import note
from dsv3_plugin.training.resume import refuse_another_parent


def make_data(recipe: Recipe) -> None:
    """Have the files written that a recipe's data are to be read from.

    Raises:
        UserError: there is no such function, it fails, or a file cannot be written.
    """
    missing = unmade(recipe)
    if not missing:
        return
    with looking_here():
        write = _function(recipe.data.made_by)
        for path in missing:
            _written(path, write, recipe.data.made_by)


def refuse_missing_maker(recipe: Recipe) -> None:
    """Raise UserError for a function that is not there, where a file of its is missing."""
    if unmade(recipe):
        with looking_here():
            _function(recipe.data.made_by)


def _written(path: Path, write: Callable[[Path], object], name: str) -> None:
    """Have a function write a file; half of one, which would be taken for it, does not stay."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except BaseException as error:
        _remove(path)
        if isinstance(error, OSError) and (full_disk.is_full(error) or _is_about(error, path)):
            raise UserError(f"{path} cannot be written ({error.strerror}): make room.") from error
        if not isinstance(error, FAILURES):
            raise
        raise UserError(
            f"data.made_by: {name} raised {raised(error)} where it was to write {path}: mend "
            f"the function, in {_file_of(write)}, or put the file there."
        ) from error
    if not path.exists():
        raise UserError(
            f"data.made_by: {name} has not written {path}, the path that it was given: mend the "
            f"function, in {_file_of(write)}, or put the file there."
        )
    if not (any(path.iterdir()) if path.is_dir() else path.stat().st_size):
        _remove(path)
        raise UserError(
            f"data.made_by: {name} has written nothing into {path}, the path that it was given: "
            f"mend the function, in {_file_of(write)}, or put the file there."
        )


def _remove(path: Path) -> None:
    """Remove what a function has begun, a file or a folder."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_about(error: OSError, path: Path) -> bool:
    """Whether what failed is the file itself, or a folder above it."""
    return isinstance(error.filename, str | os.PathLike) and (
        path.absolute().is_relative_to(Path(error.filename).absolute())
    )


def _file_of(function: Callable[[Path], object]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return getattr(function, "__module__", "its module") if code is None else code.co_filename


def prepare(
    name: str,
    overrides: list[str],
    tell: Callable[[str], None],
    progress: Progress | None = None,
) -> None:
    """Make what a recipe's data are to be read from, and build them (see `prepare_data`)."""
    machine = Machine.here()
    recipe = uncounted(name, overrides, machine)
    make_data(recipe)
    if isinstance(recipe, Rl) and (parent := missing_parent(recipe, machine)) is not None:
        tell(
            f"The prompts are there. They are read by the tokenizer of {recipe.from_}, which is "
            f"not trained yet: dsv3 train {parent} does so, and this again then looks at them."
        )
        return
    if missing := missing_texts(recipe):
        raise UserError(f"{recipe.name}: {'; '.join(missing)}.")
    prepare_data(name, overrides, tell, progress)


def missing_parent(recipe: Recipe, machine: Machine) -> str | None:
    """The recipe that is to be trained before this one, if any is.

    One whose weights are elsewhere than where the run begins is not: somebody has named others.

    Raises:
        UserError: the parent's recipe is wrong, or what was stopped there has another.
    """
    if not isinstance(recipe, Continued) or recipe.parent_recipe is None:
        return None
    return None if _missing(recipe, machine) is None else recipe.parent_recipe


def missing_parents(recipe: Recipe, machine: Machine) -> dict[str, str]:
    """All recipes that are to be trained before this one, the first of them first, and into which
    folder.

    Raises:
        UserError: one of them is wrong, or is to begin with what begins with it.
    """
    first: dict[str, str] = {}
    begun = [recipe]
    while (parent := _missing(begun[-1], machine)) is not None:
        if any(_is_in(parent, one.folder) for one in begun):
            way = " → ".join([*reversed(first), begun[-1].parent_recipe])
            raise UserError(
                f"parent_recipe: what {recipe.folder} begins with leads back to itself ({way}), a "
                "circle: have one of these begin with other weights (from)."
            )
        first = {begun[-1].parent_recipe: str(parent.folder), **first}
        begun.append(parent)
    return first


def _missing(recipe: Recipe, machine: Machine) -> Recipe | None:
    """The recipe of a parent that is not trained yet."""
    if not isinstance(recipe, Continued) or recipe.parent_recipe is None:
        return None
    if recipe.run_folder.steps_saved():
        return None
    parent = _made_by(recipe.parent_recipe, machine)
    if not _is_in(parent, recipe.from_) or _is_through(parent, recipe.parent_recipe):
        return None
    other = trained_otherwise(parent, recipe.parent_recipe)
    if other is not None and not other.is_done:
        raise other.refusal
    return parent if other is None else None


def _is_through(parent: Recipe, by: str) -> bool:
    if parent.training.epochs is None:
        return is_done(parent)
    # Only its data say how many steps it has.
    return parent.epochs_counted is not None and is_done(load_recipe(by))


def other_parent(recipe: Recipe, machine: Machine) -> str | None:
    """The sentence for a parent that a run would begin with, or the first of those that are
    trained before it, and that was trained otherwise than its recipe says now.

    Raises:
        UserError: as `missing_parents`.
    """
    while (missing := _missing(recipe, machine)) is not None:
        recipe = missing
    if not isinstance(recipe, Continued) or recipe.parent_recipe is None:
        return None
    if recipe.run_folder.steps_saved():
        return None
    parent = _made_by(recipe.parent_recipe, machine)
    if not _is_in(parent, recipe.from_):
        return None
    other = trained_otherwise(parent, recipe.parent_recipe)
    return None if other is None else other.used


def refuse_no_parent(recipe: Recipe, machine: Machine) -> None:
    """Raise UserError where a run cannot begin with its parent's weights, with the reason where
    the recipe of that is none which makes them."""
    try:
        refuse_another_parent(recipe)
    except UserError as error:
        if not isinstance(recipe, Continued) or recipe.parent_recipe is None:
            raise
        parent = _made_by(recipe.parent_recipe, machine)
        if _is_in(parent, recipe.from_) or named(recipe.from_).exists():
            raise
        raise UserError(
            f"{str(error).removesuffix('.')}; parent_recipe {recipe.parent_recipe} is passed over, "
            f"as it trains into {parent.folder}."
        ) from error


def _made_by(recipe: str, machine: Machine) -> Recipe:
    """The recipe of a parent."""
    try:
        find(recipe)
    except UserError as error:
        raise UserError(f"parent_recipe: {error}") from error
    return uncounted(recipe, [], machine)


def _is_in(parent: Recipe, folder: str) -> bool:
    return os.path.realpath(parent.folder) == os.path.realpath(named(folder))


def make_parent(
    name: str, overrides: list[str], machine: Machine, train: Callable[[str, list[str]], int]
) -> int | None:
    """Make what a run begins with and reads, by `train`, which comes here for its own parent.

    Returns:
        The exit code to end with, where the parent was stopped or broke; None: go on.

    Raises:
        UserError: as `train`.
    """
    recipe = uncounted(name, overrides, machine)
    make_data(recipe)
    if not (first := missing_parents(recipe, machine)):
        if (said := other_parent(recipe, machine)) is not None:
            note(said)
        return None
    *_, parent = first
    note(f"{recipe.from_} is not trained yet: that first, by {parent}.")
    code = train(parent, [])
    if code or missing_parent(recipe, machine) is not None:
        return code
    return None


def _function(path: str) -> Callable[[Path], object]:
    said = f"data.made_by: {path}"
    refuse_no_dotted_path(path, said)
    refuse_no_package(said, path, "function")
    return function_at(path, said, "the path of a file")
