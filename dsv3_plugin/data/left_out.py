"""What of a corpus is not trained on, and why: nothing is passed over in silence."""

from dsv3_plugin.recipe.section import Section

CANNOT_BE_READ = "cannot be read"
"""Why rows are left out that would have stopped the reading, had that been asked for."""

ROWS = "rows"
"""What is left out of a file of them."""

_EXAMPLES = 3


class LeftOut(Section):
    """Things that were left out for one reason.

    Attributes:
        things: what they are: files, folders, rows or documents.
        why: the reason, and the way out where there is one.
        count: how many.
        examples: the first few: names, or of rows what is wrong with them.
    """

    things: str
    why: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.examples) else ""
        things = self.things if self.count > 1 else self.things.removesuffix("s")
        return f"{self.count:,} {things}: {self.why} ({', '.join(self.examples)}{more})"


class Tally:
    """Counts what is left out while a corpus is listed and read."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], list[str]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, things: str, why: str, name: str) -> None:
        """One more of `things`, called `name`, is left out."""
        reason = (things, why)
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < _EXAMPLES:
            names.append(name)

    def all(self) -> tuple[LeftOut, ...]:
        """All of it, in the order in which the reasons came up."""
        return tuple(
            LeftOut(things=things, why=why, count=count, examples=tuple(self._names[things, why]))
            for (things, why), count in self._counts.items()
        )

    def __str__(self) -> str:
        return "; ".join(map(str, self.all()))
