"""Tables of text that a terminal and a page show alike."""

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from dsv3_plugin.errors import printable


@dataclass(frozen=True)
class Grid:
    """A table: words on the left, numbers on the right, words again.

    Attributes:
        header: titles of the columns; a line end in one is kept.
        rows: their texts, likewise.
        total: a last row that stands out.
        remark: whether the last column is words.
        gap: blanks between columns on a terminal.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[str, ...] | None = None
    remark: bool = False
    gap: int = 2

    def is_words(self, column: int) -> bool:
        """Whether a column is words, which may be folded where numbers may not."""
        return column == 0 or (self.remark and column == len(self.header) - 1)

    def table(self) -> Table:
        """As rich shows it."""
        table = Table(box=None, padding=(0, self.gap, 0, 0), header_style="", pad_edge=False)
        lines = max(title.count("\n") for title in self.header)
        for column, title in enumerate(self.header):
            words = self.is_words(column)
            table.add_column(
                _text("\n" * (lines - title.count("\n")) + title),
                justify="left" if words else "right",
                no_wrap=not words,
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*map(_text, row))
        if self.total is not None:
            table.add_row(*(_text(text, "bold") for text in self.total))
        return table


def _text(text: str, style: str = "") -> Text:
    """A cell's text, its lines kept and nothing else obeyed."""
    return Text("\n".join(map(printable, text.split("\n"))), style)
