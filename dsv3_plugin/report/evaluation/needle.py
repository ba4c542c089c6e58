"""What was found of the needles: a table, a heat map on a page, a mapping."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsv3_plugin.evaluation.facts import Kind, chance
from dsv3_plugin.evaluation.needle import Found
from dsv3_plugin.report.evaluation.subject import Subject
from dsv3_plugin.report.html.page import rendered, write
from dsv3_plugin.report.plan.grid import Grid

_TEMPLATE = Path(__file__).with_name("needle.html.jinja")


def grid(found: Found, kind: Kind) -> Grid:
    """Shares of right answers: a row for each length, a column for each depth, the control last."""
    setting = found.setting
    depths = (*setting.depths, None)
    header = ("length", *map(_depth_text, depths))
    rows = [
        (f"{length:,}", *(f"{found.share(kind, length, depth):.0%}" for depth in depths))
        for length in setting.lengths
    ]
    return Grid(header, tuple(rows))


def sentences(found: Found, subject: Subject, haystack: str) -> Iterator[str]:
    """What the numbers are."""
    setting = found.setting
    facts = "one fact" if setting.needles == 1 else f"{setting.needles} facts, one asked for"
    yield f"{subject.name}: facts found in {haystack}"
    yield (
        f"{setting.samples} questions each; {facts}; right is the whole answer, continued greedily"
    )


def title(kind: Kind) -> str:
    """What a table of one kind is called, and how often a guess would be right."""
    return f"{kind}: right answers by depth of the needle (a guess: {chance(kind):.2%})"


def mapping(found: Found, subject: Subject, haystack: str) -> dict[str, Any]:
    """The numbers, and all that was asked and said, for JSON."""
    setting = found.setting
    return {
        "checkpoint": subject.checkpoint,
        "changes": [*subject.changes],
        "haystack": haystack,
        "setting": asdict(setting),
        "right": [
            {
                "kind": kind,
                "length": length,
                "depth": depth,
                "share": found.share(kind, length, depth),
            }
            for kind in setting.kinds
            for length in setting.lengths
            for depth in (*setting.depths, None)
        ],
        "chance": {kind: chance(kind) for kind in setting.kinds},
        "asked": [asdict(one) | {"right": one.is_right} for one in found.asked],
    }


@dataclass(frozen=True)
class Cell:
    """One square of the heat map: its share, and what stands in it."""

    share: float
    text: str


@dataclass(frozen=True)
class HeatMap:
    """Shares of one kind by length and depth.

    Attributes:
        title: of it.
        columns: names of the depths, the control last.
        rows: the name of each length and its cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def heat_map(found: Found, kind: Kind) -> HeatMap:
    """The table of `grid` as squares of a colour."""
    table = grid(found, kind)
    depths = (*found.setting.depths, None)
    rows = [
        (
            row[0],
            tuple(
                Cell(found.share(kind, length, depth), text)
                for depth, text in zip(depths, row[1:], strict=True)
            ),
        )
        for length, row in zip(found.setting.lengths, table.rows, strict=True)
    ]
    return HeatMap(title(kind), table.header[1:], tuple(rows))


def write_page(found: Found, subject: Subject, haystack: str, path: Path) -> None:
    """Write the heat maps and the tables as one page.

    Raises:
        UserError: it cannot be written.
    """
    first, *rest = sentences(found, subject, haystack)
    kinds = found.setting.kinds
    text = rendered(
        _TEMPLATE,
        name=subject.name,
        first=first,
        rest=rest,
        maps=[heat_map(found, kind) for kind in kinds],
        wrong=[one for one in found.asked if one.depth is not None and not one.is_right],
    )
    write(text, path)


def _depth_text(depth: float | None) -> str:
    return "no needle" if depth is None else f"{depth:.0%}"
