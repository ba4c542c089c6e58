"""What a search of layouts found: ranked, with a sentence for each choice."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from dsv3_plugin.errors import printable
from dsv3_plugin.numbers import figure_text
from dsv3_plugin.planner.search.candidate import Candidate, Ranking
from dsv3_plugin.report.plan.grid import Grid
from dsv3_plugin.report.plan.grids import Unit, unit_for
from dsv3_plugin.terminal.console import styled


def ranking_mapping(found: Ranking) -> dict[str, Any]:
    """As JSON has it; the best first."""
    return {
        "considered": found.considered,
        "weighed": found.weighed,
        "candidates": [_candidate(candidate) for candidate in found.candidates],
        "given": None if found.given is None else _candidate(found.given),
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "keys": candidate.choice.keys() | {"pipeline.layout": candidate.layout},
        "step_seconds": candidate.step_seconds,
        "time_by_part": dict(candidate.time_by_part),
        "tokens_per_second_per_gpu": candidate.tokens_per_second_per_gpu,
        "memory_bytes": candidate.memory_bytes,
        "memory_rank": candidate.memory_rank,
        "fits": candidate.fits,
        "reasons": [*candidate.reasons],
    }


def ranking_tables(found: Ranking) -> Group:
    """For people, within 80 columns."""
    return Group(*_parts(found))


def _parts(found: Ranking) -> Iterator[RenderableType]:
    yield Text(
        f"{found.considered:,} ways to run it on {printable(found.cluster.name)} were looked at, "
        f"{found.weighed:,} of them simulated"
    )
    yield Text()
    yield ranked(found).table()
    yield Text()
    yield styled("1 is taken for these reasons")
    yield from _indented(found.best.reasons)
    for place, candidate in enumerate(found.candidates[1:], start=2):
        yield styled(f"{place} loses")
        yield from _indented(candidate.reasons)


def _indented(sentences: Sequence[str]) -> Iterator[RenderableType]:
    for sentence in sentences:
        yield Padding(Text(printable(sentence)), (0, 0, 0, 2))


def ranked(found: Ranking) -> Grid:
    """One row for each way that was kept, and one for the recipe as it was given."""
    rows = [(f"{place}", candidate) for place, candidate in enumerate(found.candidates, start=1)]
    if found.given is not None:
        rows.append(("given", found.given))
    unit = unit_for(found.best.memory_bytes)
    header = (
        "",
        "step\ns",
        "tokens/s\nper GPU",
        unit.name,
        "TP",
        "PP",
        "CP",
        "EP",
        "micro-\nbatch",
        "schedule, dispatcher,\nrecomputed",
    )
    return Grid(header, tuple(_row(*row, unit) for row in rows), remark=True)


def _row(place: str, candidate: Candidate, unit: Unit) -> tuple[str, ...]:
    choice = candidate.choice
    schedule = choice.schedule
    if choice.virtual_stages is not None:
        schedule += f" ×{choice.virtual_stages}"
    return (
        place,
        figure_text(candidate.step_seconds),
        f"{candidate.tokens_per_second_per_gpu:,.0f}",
        unit.text(candidate.memory_bytes) + ("" if candidate.fits else " !"),
        f"{choice.tensor}",
        f"{choice.pipeline}",
        f"{choice.context}",
        f"{choice.expert}",
        f"{choice.micro_batch}",
        ", ".join((schedule, choice.dispatcher, *choice.recompute)),
    )
