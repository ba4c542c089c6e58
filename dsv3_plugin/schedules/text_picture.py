"""A schedule as text: a line per rank, time to the right, a letter for what takes most of a column.

What `draw` shows in colour, for a terminal and for a log.
"""

from collections import Counter
from itertools import pairwise

from dsv3_plugin.schedules.actions import BACKWARD, FORWARD, INPUT, WEIGHT, Overlap
from dsv3_plugin.schedules.timeline import Span, Timeline

_LETTERS = {FORWARD: "f", BACKWARD: "b", INPUT: "i", WEIGHT: "w"}
_PAIR, _IDLE = "x", "·"
_IN_WORDS = {
    "f": "forward",
    "b": "backward",
    "i": "input gradient",
    "w": "weight gradient",
    _PAIR: "overlapped pair",
    _IDLE: "idle",
}


def text_picture(timeline: Timeline, width: int = 80) -> list[str]:
    """The timeline in lines of `width` columns, and what the letters stand for.

    Letters of a rank's first stage are capitals; a column shows what takes most of it.

    Args:
        width: of a whole line; a narrow one is widened until something can be seen.
    """
    schedule = timeline.schedule
    label = len(str(schedule.pp - 1))
    columns = max(10, width - label - 1)
    first = {rank: stage for stage, rank in reversed(schedule.stage_ranks.items())}
    lines = [
        f"{rank:{label}} {_row(row, first.get(rank), timeline.makespan, columns)}"
        for rank, row in enumerate(timeline.spans)
    ]
    used = {letter.lower() for line in lines for letter in line[label:]}
    several = any(letter.islower() and letter != _PAIR for line in lines for letter in line)
    words = ", ".join(
        f"{letter if letter in (_PAIR, _IDLE) else letter.upper()} {word}"
        for letter, word in _IN_WORDS.items()
        if letter in used
    )
    return [*lines, words + ("; small letters: a rank's further stages" if several else "")]


def _row(spans: tuple[Span, ...], first: int | None, makespan: float, columns: int) -> str:
    """A rank's line, without its number."""
    times: list[Counter[str]] = [Counter() for _ in range(columns)]
    edges = [column * makespan / columns for column in range(columns + 1)]
    for span in spans:
        letter = _letter(span, first)
        column = min(int(span.start / makespan * columns), columns - 1)
        while column < columns and edges[column] < span.end:
            shared = min(edges[column + 1], span.end) - max(edges[column], span.start)
            times[column][letter] += max(0.0, shared)
            column += 1
    text = ""
    for shown, (begin, end) in zip(times, pairwise(edges), strict=True):
        letter, longest = max(shown.items(), key=lambda item: item[1], default=(_IDLE, 0.0))
        text += letter if longest >= (end - begin) - sum(shown.values()) else _IDLE
    return text


def _letter(span: Span, first: int | None) -> str:
    if isinstance(span.action, Overlap):
        return _PAIR
    letter = _LETTERS[span.action.kind]
    return letter.upper() if span.action.stage == first else letter
