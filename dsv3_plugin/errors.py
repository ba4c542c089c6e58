"""The one exception that reaches a user: a sentence that names the thing and the way out."""

import unicodedata
from collections.abc import Iterator
from typing import Any

_SHOW_THEMSELVES = frozenset("LMNPSZ")
_LONGEST = 4000
"""Characters of a sentence; of what a hostile file adds to it, the middle is left out."""
_LINE_ENDS = frozenset({"Zl", "Zp"})


class UserError(Exception):
    """Something the user can mend. The command line prints the sentence and exits with code 2.

    Whatever stands in it (a name from a file, a path) is shown, not obeyed: see `printable`.
    """

    def __str__(self) -> str:
        text = printable(super().__str__())
        return (
            text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 4 :]}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, for another process: exceptions are made again of their sentence otherwise,
        which is not what every kind's `__init__` takes."""
        return _as_it_was, (type(self), self.args), self.__dict__


def _as_it_was(kind: type[UserError], args: tuple[Any, ...]) -> UserError:
    return kind.__new__(kind, *args)


class Passing(UserError):
    """What may be over when the same is tried again: a rank was lost, another process is there."""


class SaidElsewhere(UserError):
    """A sentence that the person has from another rank."""


class PassingElsewhere(SaidElsewhere, Passing):
    """Such a sentence on what may be over when the same is tried again."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came of, down to the first; upstream and torch wrap what they call.

    torch's CheckpointException keeps its causes aside, with their tracebacks, by rank.
    """
    while error is not None:
        yield error
        for cause, _ in getattr(error, "failures", {}).values():
            yield from causes(cause)
        error = error.__cause__ or error.__context__


def user_error_in(error: BaseException | None) -> UserError | None:
    """The sentence for the user among the causes of an error."""
    return next((cause for cause in causes(error) if isinstance(cause, UserError)), None)


def printable(text: str) -> str:
    """One line that a terminal shows as it is, whoever chose the text.

    Line ends, control characters (and with them a terminal's commands), invisible ones, those that
    turn the direction of writing, and bytes of a path that are no text become what Python writes
    for them: a name from a file cannot begin a line of its own, or wipe out another.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    kind = unicodedata.category(character)
    if kind[0] in _SHOW_THEMSELVES and kind not in _LINE_ENDS:
        return character
    if "\udc80" <= character <= "\udcff":  # a byte, as `os.fsdecode` hides it in a string
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
