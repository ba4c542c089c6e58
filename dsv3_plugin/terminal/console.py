"""Tables and bars: rich's console, for which a string is the text in it and nothing else."""

from typing import Any, TextIO

import rich.console
from rich.text import Text

from dsv3_plugin.errors import printable

_NARROWEST, _USUAL = 20, 80
"""Columns of a terminal."""


class Console(rich.console.Console):
    """rich's console; strings, those in the cells of a table too, are shown as they are.

    Neither markup nor emoji codes are looked for in them, and what is no text is shown as
    `errors.printable` has it. What is to have a style is a `Text`, made by `styled`.
    """

    def __init__(self, file: TextIO | None = None, **options: Any) -> None:
        options = {"markup": False, "emoji": False, **options}
        super().__init__(file=file, **options)
        if self.width < _NARROWEST:  # COLUMNS=0, say, into which nothing fits
            self.width = _USUAL

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as rich's text."""
        return super().render_str(printable(text), **options)

    def line_of(self, text: str) -> None:
        """Print one line, however long, without folding it."""
        self.print(text, soft_wrap=True, highlight=False)


def styled(text: str, style: str = "bold") -> Text:
    """A string with a style."""
    return Text(printable(text), style=style)
