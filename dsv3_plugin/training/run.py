"""One run: its recipe, its folder, and what is known of it meanwhile."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.training.hooks import Hook, Step
from dsv3_plugin.upstream import own_run


@dataclass
class Run:
    """What this process is training, and all that is known of it meanwhile.

    Attributes:
        recipe: the whole truth of it.
        folder: where it leaves what it leaves.
        machine: what this process runs on.
        hooks: what runs beside each step, in this order.
        step: the one that is under way, or was last.
        place: what to call the moment it is at: "step 12", "the evaluation after step 12".
        evaluated: after how many steps the weights were evaluated last.
        batch_may_grow: whether upstream looks between two steps whether the batch does.
        saving_here: whether a checkpoint of the run is being made, whose writers are threads.
        unfinished: the iteration of a checkpoint that is being written while training goes on.
        tell: takes a sentence for the person.
        loaded: what hooks kept in the checkpoint that the run goes on from, by their names.
    """

    recipe: Recipe
    folder: RunFolder
    machine: Machine
    hooks: Sequence[Hook] = ()
    step: Step | None = None
    place: str = "the start"
    evaluated: int | None = None
    batch_may_grow: bool = False
    saving_here: bool = False
    unfinished: int | None = None
    tell: Callable[[str], None] = print
    loaded: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Be at a place while the block lasts, and stay there where it fails."""
        before, self.place = self.place, place
        yield
        self.place = before

    @contextlib.contextmanager
    def in_charge(self) -> Iterator[None]:
        """Make this the run that upstream's wrapped functions serve, while the block lasts."""
        token = _current.set(self)
        try:
            with own_run.training():
                yield
        finally:
            _current.reset(token)


_current: ContextVar[Run | None] = ContextVar("run", default=None)


def current_run() -> Run | None:
    """The run in charge; None in a Megatron program that only uses the plugin's parts."""
    return _current.get()
