"""The pipeline of a step as a picture: a lane for each rank, time to the right."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from dsv3_plugin.schedules.actions import BACKWARD, FORWARD, INPUT, WEIGHT, Overlap
from dsv3_plugin.schedules.timeline import Span, Timeline

_PAIR = "pair"
_CLASS = {
    FORWARD: "forward",
    BACKWARD: "backward",
    INPUT: "input_gradient",
    WEIGHT: "weight_gradient",
    _PAIR: "pair",
}
"""Kind of an action → class of its boxes on the page."""
NAMES = {
    "forward": "forward",
    "backward": "backward",
    "input_gradient": "backward, input gradients",
    "weight_gradient": "backward, weight gradients",
    "pair": "forward and backward side by side",
}
_APART = 4.0
"""Boxes that are narrower than this are drawn together where they touch: a step has thousands."""


@dataclass(frozen=True)
class Lanes:
    """Boxes of a pipeline, in units of the drawing.

    Attributes:
        width, lane: of the drawing, and the height of a rank.
        paths: class → all its boxes as one SVG path.
        idle: share of the step's pipeline that each rank waits.
        seconds: of the whole.
    """

    width: float
    lane: float
    paths: dict[str, str]
    idle: tuple[float, ...]
    seconds: float


def lanes(timeline: Timeline, width: float, lane: float) -> Lanes:
    """A timeline, drawn into so much width with so much height for a rank."""
    makespan = timeline.makespan
    boxes: dict[str, list[str]] = defaultdict(list)
    for rank, row in enumerate(timeline.spans):
        for kind, start, end in _merged(row, _APART * makespan / width):
            left, right = width * start / makespan, width * end / makespan
            boxes[kind].append(
                f"M{left:.1f} {rank * lane + 1:g}h{right - left:.1f}v{lane - 2:g}"
                f"h{left - right:.1f}z"
            )
    return Lanes(
        width,
        lane,
        {kind: "".join(boxes[kind]) for kind in NAMES if kind in boxes},
        tuple(idle / makespan for idle in timeline.idle_per_rank),
        makespan,
    )


def _merged(row: tuple[Span, ...], narrow: float) -> Iterator[tuple[str, float, float]]:
    """(class, start, end) of a rank's boxes."""
    kind, start, end = "", 0.0, 0.0
    for span in row:
        this = _CLASS[_PAIR if isinstance(span.action, Overlap) else span.action.kind]
        touches = span.start - end < 0.1 * narrow and span.end - span.start < narrow
        if this == kind and touches:
            end = span.end
            continue
        if kind:
            yield kind, start, end
        kind, start, end = this, span.start, span.end
    if kind:
        yield kind, start, end
