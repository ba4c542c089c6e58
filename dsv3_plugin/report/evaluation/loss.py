"""What a model's losses were: tables, a picture on a page, a mapping."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsv3_plugin.evaluation.loss import Bucket, Losses
from dsv3_plugin.report.evaluation.subject import Subject
from dsv3_plugin.report.html.page import rendered, write
from dsv3_plugin.report.plan.grid import Grid

_TEMPLATE = Path(__file__).with_name("loss.html.jinja")
_STROKES = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#9c6bb3", "#76b7b2")
"""Colours of the frame, one for each line; lines beyond these begin again."""


def totals(found: Sequence[Losses]) -> Grid:
    """A row for each set: its loss and perplexity."""
    rows = [
        (
            one.name,
            f"{one.sequences:,}",
            f"{one.seq_length:,}",
            f"{one.loss:.4f}",
            f"{one.perplexity:.2f}",
        )
        for one in found
    ]
    return Grid(("set", "sequences", "of tokens", "nats per token", "perplexity"), tuple(rows))


def by_position(found: Sequence[Losses]) -> Grid:
    """A row for each bucket of context, a column for each set."""
    header = ("tokens of context", *(one.name for one in found))
    rows = [
        (_context(buckets[0]), *(f"{bucket.loss:.4f}" for bucket in buckets))
        for buckets in zip(*(one.buckets for one in found), strict=True)
    ]
    return Grid(header if len(found) > 1 else (header[0], "nats per token"), tuple(rows))


def mapping(found: Sequence[Losses], subject: Subject) -> dict[str, Any]:
    """The numbers for JSON, which knows none that are not finite: null."""
    return {
        "checkpoint": subject.checkpoint,
        "changes": [*subject.changes],
        "sets": [
            {
                "name": one.name,
                "sequences": one.sequences,
                "seq_length": one.seq_length,
                "loss": _finite(one.loss),
                "perplexity": _finite(one.perplexity),
                "by_position": [
                    asdict(bucket) | {"loss": _finite(bucket.loss)} for bucket in one.buckets
                ],
            }
            for one in found
        ],
    }


@dataclass(frozen=True)
class Line:
    """One set in the picture.

    Attributes:
        name: of the set.
        stroke: its colour.
        points: of the corners, as SVG has them.
    """

    name: str
    stroke: str
    points: str


@dataclass(frozen=True)
class Drawn:
    """Losses over context, in a picture 900 wide.

    Attributes:
        lines: one for each set.
        across: where a context stands and what it is called.
        up: where a loss stands and what it is called.
    """

    lines: tuple[Line, ...]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]


LEFT, RIGHT, TOP, BOTTOM = 60, 890, 10, 270


def drawn(found: Sequence[Losses]) -> Drawn:
    """The picture: context doubles from one mark to the next, a loss stands at its bucket's end.

    A loss that is not finite has no place in it.
    """
    buckets = found[0].buckets
    losses = [loss for one in found for bucket in one.buckets if math.isfinite(loss := bucket.loss)]
    least, most = math.floor(min(losses, default=0)), math.ceil(max(losses, default=1))
    last = max(math.log2(buckets[-1].last), 1.0)

    def x(bucket: Bucket) -> float:
        return round(LEFT + (RIGHT - LEFT) * math.log2(bucket.last) / last, 1)

    def y(loss: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (loss - least) / max(most - least, 1), 1)

    return Drawn(
        tuple(
            Line(
                one.name,
                _STROKES[number % len(_STROKES)],
                " ".join(
                    f"{x(bucket)},{y(bucket.loss)}"
                    for bucket in one.buckets
                    if math.isfinite(bucket.loss)
                ),
            )
            for number, one in enumerate(found)
        ),
        tuple((x(bucket), f"{bucket.last:,}") for bucket in buckets),
        tuple(
            (y(loss), f"{loss:,}") for loss in range(least, most + 1, max((most - least) // 10, 1))
        ),
    )


def write_page(found: Sequence[Losses], subject: Subject, path: Path) -> None:
    """Write tables and picture as one page.

    Raises:
        UserError: it cannot be written.
    """
    text = rendered(
        _TEMPLATE,
        name=subject.name,
        totals=totals(found),
        by_position=by_position(found),
        drawn=drawn(found),
        left=LEFT,
        right=RIGHT,
        bottom=BOTTOM,
    )
    write(text, path)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _context(bucket: Bucket) -> str:
    if bucket.first == bucket.last:
        return f"{bucket.last:,}"
    return f"{bucket.first:,} to {bucket.last:,}"
