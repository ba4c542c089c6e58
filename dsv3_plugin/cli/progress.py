"""How far a verb is: a bar on a terminal, and in a log lines now and then or nothing.

All of it goes to stderr; stdout is for what was found or done.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from dsv3_plugin.numbers import bytes_text, number_of, time_text
from dsv3_plugin.terminal.console import Console
from dsv3_plugin.terminal.lines import note

_LOG_SECONDS = 30.0
_FIRST_LOG_SECONDS = 5.0
"""A log's first line comes sooner, for whoever waits to see whether it works, and how fast."""


@contextlib.contextmanager
def bytes_done(label: str) -> Iterator[Callable[[int, int], None]]:
    """Shows bytes done, rate and time left; in a log, a line after 5 seconds and every half minute.

    Yields what is to be called with (bytes done, bytes in all), first with those that were done
    before: no rate counts them.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(label)
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(label: str) -> Callable[[int, int], None]:
    began = due = time.monotonic()
    before: int | None = None

    def report(done: int, total: int) -> None:
        nonlocal began, before, due
        now = time.monotonic()
        if before is None:  # the first call says what was done before
            began, before, due = now, done, now + _FIRST_LOG_SECONDS
        looks_back = before > 0 and done == before
        if looks_back:  # at what was kept: new bytes, and their rate, begin later
            began = now
        if now < due or not done:
            return
        due = now + _LOG_SECONDS
        if looks_back:
            note(
                f"{label}: {bytes_text(done)} of {bytes_text(total)} were done before, and are "
                "read back"
            )
            return
        rate = (done - before) / max(now - began, 1e-9)
        note(
            f"{label}: {bytes_text(done)} of {bytes_text(total)}, {bytes_text(rate)}/s, "
            f"{time_text((total - done) / rate)} left"
        )

    return report


@contextlib.contextmanager
def phases() -> Iterator[Callable[[str, int, int | None], None]]:
    """Shows the phases of one piece of work; in a log, a line after 5 s and every half minute.

    Yields what is to be called with (phase, items done, items in all where known).
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _phase_lines()
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task, current = None, None

        def show(phase: str, done: int, total: int | None) -> None:
            nonlocal task, current
            if phase != current:
                if task is not None:
                    bar.remove_task(task)
                task, current = bar.add_task(phase, total=total), phase
            bar.update(task, completed=done)

        yield show


def _phase_lines() -> Callable[[str, int, int | None], None]:
    due = time.monotonic() + _FIRST_LOG_SECONDS

    def show(phase: str, done: int, total: int | None) -> None:
        nonlocal due
        if (now := time.monotonic()) < due or not done:
            return
        due = now + _LOG_SECONDS
        note(f"{phase}: {done:,}" if total is None else f"{phase}: {done:,} of {total:,}")

    return show


@contextlib.contextmanager
def problems_done(total: int) -> Iterator[Callable[[int, int], None]]:
    """Shows how many problems are answered; in a log, a line every half minute.

    Yields what is to be called with (problems done, answers kept).
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        last = time.monotonic()

        def tell(done: int, kept: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _LOG_SECONDS:
                last = time.monotonic()
                note(f"{done:,} of {total:,} problems answered, {kept:,} answers kept")

        yield tell
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[kept]:,} kept"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("answering", total=total, kept=0)
        yield lambda done, kept: bar.update(task, completed=done, kept=kept)


@contextlib.contextmanager
def children_done(total: int) -> Iterator[Callable[[], None]]:
    """Shows how many of some processes have ended; in a log a line at first, and as they end.

    Yields what is called as one does, from any thread. One process alone takes seconds, and no
    line.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _children_lines(total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        *(TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("rehearsing", total=total)
        yield lambda: bar.advance(task)


def _children_lines(total: int) -> Callable[[], None]:
    began = last = time.monotonic()
    ended, one_at_a_time = 0, threading.Lock()
    if total > 1:
        note(f"rehearsing, in {number_of(total, 'process', 'processes')}: minutes, as a rule")

    def report() -> None:
        nonlocal ended, last
        with one_at_a_time:
            ended += 1
            now = time.monotonic()
            if total > 1 and (now - last >= _FIRST_LOG_SECONDS or ended == total):
                last = now
                note(f"rehearsing: {ended:,} of {total:,} have ended, {time_text(now - began)}")

    return report
