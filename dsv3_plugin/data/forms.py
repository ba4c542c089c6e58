"""How a row becomes a document: what is read of it, and what text that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from dsv3_plugin.errors import UserError

Span = tuple[int, int]
"""Of a text: from a character to before another."""

_KEYS_NAMED = 8
_LONG_KEY = 60
_SET_KEY = "name it by --text-key (in a recipe data.text_key)"


class Content(NamedTuple):
    """What a row holds.

    Attributes:
        text: all of it.
        spans: what of it is learned, in its order; None: all of it.
    """

    text: str
    spans: tuple[Span, ...] | None = None


class Form(Protocol):
    """A form that rows have.

    Attributes:
        keys: one of them is in every row.
        reads_text: whether a file of plain text is a document, too.
        settings: what a dataset's `Settings` record of it.
        tokenizer_files: what belongs into the folder of a dataset's tokenizer, by its name.
    """

    reads_text: bool

    @property
    def keys(self) -> tuple[str, ...]: ...

    @property
    def settings(self) -> dict[str, str]: ...

    @property
    def tokenizer_files(self) -> dict[str, str]: ...

    def columns(self, names: Sequence[str], where: str) -> list[str]:
        """Which of a table's columns are read.

        Raises:
            UserError: one is missing.
        """

    def content(self, row: Any, where: str) -> Content:
        """What a row holds.

        Args:
            row: a value of JSON, or the columns that are read of a row.
            where: what errors call it.

        Raises:
            UserError: it is no row of this form.
        """


@dataclass(frozen=True)
class TextForm:
    """A text under a key, or in a column."""

    text_key: str = "text"
    reads_text = True

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.text_key,)

    @property
    def settings(self) -> dict[str, str]:
        return {"text_key": self.text_key}

    @property
    def tokenizer_files(self) -> dict[str, str]:
        return {}

    def columns(self, names: Sequence[str], where: str) -> list[str]:
        """The column of that name."""
        if self.text_key not in names:
            raise UserError(
                f'{where} has no column "{self.text_key}" (its columns: {named(names)}): '
                f"{_SET_KEY}."
            )
        return [self.text_key]

    def content(self, row: Any, where: str) -> Content:
        """The text."""
        if not isinstance(row, dict):
            raise UserError(f'{where} is not a JSON object with a "{self.text_key}" key.')
        if self.text_key not in row:
            raise UserError(
                f'{where} has no key "{self.text_key}" (its keys: {named(sorted(row))}): '
                f"{_SET_KEY}."
            )
        return Content(unicode_text(row[self.text_key], f'{where}: "{self.text_key}"'))


TEXT = TextForm()
"""What rows are where nobody says."""


def unicode_text(value: object, where: str) -> str:
    """A value, if it is text that UTF-8 can hold.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, str):
        raise UserError(f"{where} is not text but {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON may spell half of a surrogate pair
        raise UserError(
            f"{where} is not valid Unicode (a lone surrogate at character {error.start})."
        ) from error
    return value


def named(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _KEYS_NAMED
    shown = [name if len(name) <= _LONG_KEY else f"{name[:_LONG_KEY]}…" for name in names]
    return ", ".join(shown[:_KEYS_NAMED]) + (f" and {more:,} more" if more > 0 else "") or "none"
