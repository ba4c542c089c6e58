"""Lines on standard output and standard error, whatever these are.

What a file or a user chose is shown and never obeyed (`errors.printable`). A character that the
terminal's encoding lacks is shown by its number. Standard output may end at any moment, since
nobody reads it any more or its disk is full: that is `Unwritable`, and nothing else is. Without
rich, which not every verb needs.
"""

import contextlib
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from dsv3_plugin.errors import UserError, printable


class Unwritable(UserError):
    """Standard output takes nothing more.

    Attributes:
        unread: whether that is since nobody reads it any more, which is no fault of anything.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written ({error.strerror or error}).")
        self.unread = isinstance(error, BrokenPipeError)


class Output:
    """Standard output; what it does not take is `Unwritable`."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write, as any file does."""
        with _unwritable():
            return self._file.write(text)

    def flush(self) -> None:
        """Flush, as any file does."""
        with _unwritable():
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def prepare() -> None:
    """Make this process's standard streams take whatever is to be said. Once, at its start."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: nothing opened later may get its number
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stdout, Output):
        sys.stdout = Output(sys.stdout)


def text_file(descriptor: int) -> TextIO:
    """A standard stream of another number, to write lines into."""
    return os.fdopen(descriptor, "w", buffering=1, errors="backslashreplace")


def log_into_standard_streams() -> None:
    """Let standard output and standard error, which have become a log, be ordinary files again."""
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout, sys.stderr = (
        os.fdopen(n, "w", 1, "utf-8", "backslashreplace", closefd=False) for n in (1, 2)
    )


def say(line: str = "") -> None:
    """One line on standard output.

    Raises:
        Unwritable: it cannot be written.
    """
    print(printable(line))


def say_all(lines: Iterable[str]) -> None:
    """Several lines on standard output."""
    for line in lines:
        say(line)


def say_json(said: Any) -> None:
    """One line of JSON on standard output; numbers that JSON lacks (NaN, infinities) are null."""
    say(json.dumps(_finite(said), allow_nan=False))


def note(line: str) -> None:
    """One line on standard error, if that can be written at all."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(line), file=sys.stderr, flush=True)


def show_text(text: str) -> None:
    """A piece of a text with lines of its own (a document, what a model wrote), as it is.

    On a terminal its lines are kept, and everything else that is no text is shown.
    """
    if sys.stdout.isatty():
        text = "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))
    print(text, end="", flush=True)


def finish() -> None:
    """Write what is still on its way.

    Raises:
        Unwritable: it cannot be written.
    """
    sys.stdout.flush()


def abandon(stream: TextIO) -> None:
    """Let a stream that takes nothing more swallow the rest, so that the interpreter can end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _finite(said: Any) -> Any:
    if isinstance(said, dict):
        return {key: _finite(value) for key, value in said.items()}
    if isinstance(said, list | tuple):
        return [_finite(value) for value in said]
    return None if isinstance(said, float) and not math.isfinite(said) else said


@contextlib.contextmanager
def _unwritable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unwritable(error) from error
