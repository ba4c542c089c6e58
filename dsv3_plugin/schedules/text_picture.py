"""A schedule as text: a line per rank, time to the right, a letter for what takes most of a column.

What `draw` shows in colour, for a terminal and for a log.
"""

from collections import Counter

from dsv3_plugin.schedules.actions import BACKWARD, FORWARD, INPUT, WEIGHT, Overlap
from dsv3_plugin.schedules.timeline import Span, Timeline

_LETTERS = {FORWARD: "f", BACKWARD: "b", INPUT: "i", WEIGHT: "w"}
_NOTHING = 1e-9
"""Of the time: what an edge of a column cuts off by rounding."""
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

    Letters of a rank's first stage are capitals; a column shows what takes most of it, which the
    last line says where a column has several.

    Args:
        width: of a whole line; a narrow one is widened until something can be seen.
    """
    schedule = timeline.schedule
    label = len(str(schedule.pp - 1))
    columns = max(10, width - label - 1)
    first = {rank: stage for stage, rank in reversed(schedule.stage_ranks.items())}
    rows = [
        _times(row, first.get(rank), timeline.makespan, columns)
        for rank, row in enumerate(timeline.spans)
    ]
    lines = [
        f"{rank:{label}} {''.join(_most(one, timeline.makespan / columns) for one in row)}"
        for rank, row in enumerate(rows)
    ]
    used = {letter.lower() for line in lines for letter in line[label:]}
    taken = {letter.lower() for row in rows for one in row for letter in one}
    unseen = [_IN_WORDS[letter] for letter in _IN_WORDS if letter in taken - used]
    shared = any(len(one) > 1 for row in rows for one in row)
    several = any(letter.islower() and letter != _PAIR for line in lines for letter in line)
    words = ", ".join(
        f"{letter if letter in (_PAIR, _IDLE) else letter.upper()} {word}"
        for letter, word in _IN_WORDS.items()
        if letter in used
    )
    if several:
        words += "; small letters: a rank's further stages"
    if shared:
        words += "; a column shows what takes most of it"
    if unseen:
        words += f", which {' and '.join(unseen)} nowhere {'does' if len(unseen) == 1 else 'do'}"
    return [*lines, words]


def _times(
    spans: tuple[Span, ...], first: int | None, makespan: float, columns: int
) -> list[Counter[str]]:
    """How long each letter takes of each column of a rank's line."""
    times: list[Counter[str]] = [Counter() for _ in range(columns)]
    edges = [column * makespan / columns for column in range(columns + 1)]
    for span in spans:
        letter = _letter(span, first)
        column = min(int(span.start / makespan * columns), columns - 1)
        while column < columns and edges[column] < span.end:
            shared = min(edges[column + 1], span.end) - max(edges[column], span.start)
            if shared > _NOTHING * makespan:
                times[column][letter] += shared
            column += 1
    return times


def _most(times: Counter[str], whole: float) -> str:
    """What takes most of a column: a letter, or that nothing does."""
    letter, longest = max(times.items(), key=lambda item: item[1], default=(_IDLE, 0.0))
    return letter if longest >= whole - sum(times.values()) else _IDLE


def _letter(span: Span, first: int | None) -> str:
    if isinstance(span.action, Overlap):
        return _PAIR
    letter = _LETTERS[span.action.kind]
    return letter.upper() if span.action.stage == first else letter
