"""A progress bar on a terminal; silence in a log."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Report:
    """The phases of one piece of work, shown one after the other."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = None

    def __call__(self, phase: str, total: int | None) -> None:
        """Begin a phase of `total` items, None where that is not known."""
        if self._task is not None:
            self._bar.stop_task(self._task)
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(phase, total=total)

    def advance(self) -> None:
        """One item of the phase is done."""
        self._bar.advance(self._task)


@contextlib.contextmanager
def progress() -> Iterator[Report]:
    """Show the progress of the block on standard error."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        yield Report(bar)
