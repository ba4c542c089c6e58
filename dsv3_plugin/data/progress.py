"""Who builds a dataset tells how far it is."""

from collections.abc import Callable, Iterable, Iterator

Progress = Callable[[str, int, int | None], None]
"""Called with a phase of the work, its documents done, and those in all where that is known."""


def counted[T](
    documents: Iterable[T], progress: Progress, phase: str, total: int | None
) -> Iterator[T]:
    """The documents as they come; `progress` is told of each when it has been dealt with."""
    progress(phase, 0, total)
    for done, document in enumerate(documents, 1):
        yield document
        progress(phase, done, total)


def silent(phase: str, done: int, total: int | None) -> None:
    pass
