"""What is to be launched: one run of a recipe, or a sweep's. No torch here."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.overrides import parse


@dataclass(frozen=True)
class WantedRun:
    """One run of what is to be launched.

    Attributes:
        value: `key=value` by which it differs from the others of a sweep; None: it is alone.
        overrides: all of it.
        own: those of them that the others have not.
    """

    value: str | None
    overrides: tuple[str, ...]
    own: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What is to be launched.

    Attributes:
        name: a shipped recipe, or a path.
        overrides: `key=value` texts.
        cluster: a cluster's name, or the path of its file; None: what the recipe names.
        nodes: how many; None: as many as the ranks fill.
        after: a job, or the folder of a run, that has to end well first.
        array: `key=value,value,…`: a run for each value.
        way: the option that asks for another than a job of Slurm (`--kubernetes`).
    """

    name: str
    overrides: tuple[str, ...] = ()
    cluster: str | None = None
    nodes: int | None = None
    after: str | None = None
    array: str | None = None
    way: str | None = None

    @property
    def command(self) -> str:
        """The command line that asks for it."""
        options = (
            ("--cluster", self.cluster), ("--nodes", self.nodes),
            ("--after", self.after), ("--array", self.array),
        )  # fmt: skip
        given = [word for name, value in options if value is not None for word in (name, value)]
        way = [] if self.way is None else [self.way]
        return shlex.join(["dsv3", "launch", self.name, *map(str, given), *way, *self.overrides])

    def again(self, run: WantedRun) -> str:
        """The command line that goes on with one of its runs, alone and at once."""
        alone = replace(self, after=None, array=None)
        return replace(alone, overrides=(*self.overrides, *run.own)).command


def wanted_runs(wanted: Wanted, overrides: Sequence[str]) -> Iterator[WantedRun]:
    """The runs: one, or one for each value of a sweep, in a folder of its own.

    Args:
        wanted: what is to be launched.
        overrides: of all of them.

    Raises:
        UserError: the values are none, or no name for a folder.
    """
    if wanted.array is None:
        yield WantedRun(None, tuple(overrides))
        return
    key = parse(wanted.array)
    values = [value.strip() for value in key.value.split(",")]
    if len(set(values)) < len(values) or not all(values) or "/" in key.value:
        raise UserError(
            f"--array {wanted.array}: name each value once, as in training.seed=1,2,3 (and what is "
            "part of a folder's name has no slash)."
        )
    if key.keys == ("directory",):
        raise UserError(
            "each run of a sweep has a folder of its own already: name the values of another key "
            "with --array, and the folder that holds them with directory=PATH."
        )
    base = load_recipe(wanted.name, [*overrides, f"{key.path}={values[0]}"])
    for value in values:
        folder = base.folder / f"{key.keys[-1]}-{value}"
        said = f"{key.path}={value}"
        own = (said, f"directory={folder}")
        yield WantedRun(said, (*overrides, *own), own)
