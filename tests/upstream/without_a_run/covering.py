"""What upstream documents holds with the table of patches applied, where no run of ours trains.

A test for each row, on one process: what upstream's function gives as installed, it gives after
`register()`. Several ranks: ../test_without_a_run_on_ranks.py.
"""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import dsv3_plugin


def of[F: Callable[..., None]](*symbols: str) -> Callable[[F], F]:
    """Marks the test of these replaced symbols."""

    def marked(test: F) -> F:
        test.covers = symbols
        return test

    return marked


def covered() -> Iterator[str]:
    """The symbols of all tests in this folder."""
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"{__name__.rpartition('.')[0]}.{file.stem}")
        for test in vars(module).values():
            yield from getattr(test, "covers", ())


def both[T](compute: Callable[[], T]) -> tuple[T, T]:
    """What a computation gives with upstream as installed, and what with the table applied."""
    before = compute()
    dsv3_plugin.register()
    try:
        return before, compute()
    finally:
        dsv3_plugin.unregister()
