"""Stacked bars of a plan, as shares of the width they are drawn in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dsv3_plugin.numbers import bytes_text, figure_text
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.plan import MemoryPart, PhasePlan, Plan
from dsv3_plugin.report.plan.words import MEMORY, TIME, stages_text

_MANY_TIMES = 10


@dataclass(frozen=True)
class Piece:
    """One part of a bar.

    Attributes:
        part: which, as the plan names it.
        start, width: of the whole width.
        text: what it is, in full.
    """

    part: str
    start: float
    width: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A label, its parts from left to right, and what they come to."""

    label: str
    pieces: tuple[Piece, ...]
    total: str


@dataclass(frozen=True)
class Bars:
    """Bars on one scale.

    Attributes:
        bars: from top to bottom.
        legend: part → its name, of all that occur.
        line: where something ends that all are held against, of the width; None: nothing does.
        line_text: what that is.
    """

    bars: tuple[Bar, ...]
    legend: dict[str, str]
    line: float | None = None
    line_text: str = ""


def memory_bars(plan: Plan, phase: PhasePlan) -> Bars:
    """Memory of each pipeline rank at its fullest, against the device's."""
    rows = [
        (f"{rank.pipeline_rank}: {stages_text(rank)}", rank.memory_bytes) for rank in phase.ranks
    ]
    return bars_of_memory(rows, plan.cluster)


def bars_of_memory(rows: Sequence[tuple[str, Mapping[MemoryPart, int]]], cluster: Cluster) -> Bars:
    """Memory by part, a bar for each row, against a device's.

    A device that has many times as much is left out: beside it nothing could be told apart.

    Args:
        rows: a label, and bytes by part.
        cluster: whose device it is.
    """
    card = cluster.memory_bytes
    fullest = max(sum(parts.values()) for _, parts in rows)
    is_drawn = card < _MANY_TIMES * fullest
    most = max(card, fullest) if is_drawn else fullest

    def bar(label: str, parts: Mapping[MemoryPart, int]) -> Bar:
        return Bar(
            label, _stacked(parts, MEMORY, most, bytes_text), bytes_text(sum(parts.values()))
        )

    return Bars(
        tuple(bar(*row) for row in rows),
        _occurring(MEMORY, [parts for _, parts in rows]),
        card / most if is_drawn else None,
        f"{cluster.gpu}: {bytes_text(card)}",
    )


def time_bars(phases: Sequence[PhasePlan]) -> Bars:
    """Seconds of a step of each phase by part."""
    most = max(sum(phase.time_by_part.values()) for phase in phases)

    def bar(phase: PhasePlan) -> Bar:
        pieces = _stacked(
            phase.time_by_part,
            TIME,
            most,
            lambda n: f"{figure_text(n)} s, {n / phase.step_seconds:.1%}",
        )
        return Bar(phase.name, pieces, f"{figure_text(phase.step_seconds)} s")

    return Bars(tuple(map(bar, phases)), _occurring(TIME, [phase.time_by_part for phase in phases]))


def _stacked[Part: str](
    sizes: Mapping[Part, float],
    names: Mapping[Part, str],
    most: float,
    size_text: Callable[[float], str],
) -> tuple[Piece, ...]:
    """The parts one after the other, in the order of their names."""
    pieces: list[Piece] = []
    end = 0.0
    for part, name in names.items():
        if size := sizes.get(part):
            pieces.append(Piece(part, end / most, size / most, f"{name}: {size_text(size)}"))
            end += size
    return tuple(pieces)


def _occurring[Part: str](
    names: Mapping[Part, str], held: Sequence[Mapping[Part, float]]
) -> dict[str, str]:
    return {part: name for part, name in names.items() if any(sizes.get(part) for sizes in held)}
