"""The tables of a rehearsal: what ranks hold against their card and the plan, and what they do."""

from collections.abc import Iterable, Mapping, Sequence

from dsv3_plugin.planner.plan import MemoryPart
from dsv3_plugin.rehearsal.rehearsal import Rehearsal
from dsv3_plugin.rehearsal.stepped import SteppedRank
from dsv3_plugin.report.plan.grid import Grid
from dsv3_plugin.report.plan.grids import unit_for
from dsv3_plugin.report.plan.words import MEMORY, stages_text


def stages(rehearsal: Rehearsal) -> Grid:
    """A row for each rank and step: memory against card and plan, work against the mean, waits."""
    stepped = rehearsal.stepped
    unit = unit_for(max((rank.total for rank in stepped), default=0))
    several = len({rank.case.schedule for rank in stepped}) > 1
    waiting = [rehearsal.waiting(rank) for rank in stepped]
    waits = any(share is not None for share in waiting)
    rows = tuple(
        (
            name(rank, several),
            unit.text(rank.total),
            unit.text(rank.planned.memory_total),
            unit.text(rank.card - rank.total),
            f"{rank.planned.work:.3f}",
            *([_percent(share)] if waits else []),
        )
        for rank, share in zip(stepped, waiting, strict=True)
    )
    header = (
        "rank, its stages",
        f"memory\n{unit.name}",
        f"planned\n{unit.name}",
        "spare",
        "work/mean",
        *(["waiting\n%"] if waits else []),
    )
    return Grid(header, rows)


def memory(rehearsal: Rehearsal) -> Grid:
    """The fullest rank by part, rehearsed and planned."""
    fullest = max(rehearsal.ranks, key=lambda rank: rank.total)
    several = len({rank.case.schedule for rank in rehearsal.stepped}) > 1
    step = f" in {fullest.case.schedule}" if several else ""
    unit = unit_for(fullest.total)
    planned = fullest.planned.memory_bytes
    rows = tuple(
        (label, unit.text(fullest.memory.get(part, 0)), unit.text(planned.get(part, 0)))
        for part, label in _shown([fullest])
    )
    total = ("in all", unit.text(fullest.total), unit.text(sum(planned.values())))
    header = f"rank {fullest.report.rank}{step}, {unit.name}"
    return Grid((header, "rehearsed", "planned"), rows, total)


def answers(rehearsal: Rehearsal) -> Grid:
    """The engine of each rank at its fullest, rehearsed and planned; no row without answers."""
    found = [(rank, rank.report.answered) for rank in rehearsal.stepped if rank.report.answered]
    unit = unit_for(max((sum(engine.memory.values()) for _, engine in found), default=0))
    rows = tuple(
        (
            str(rank.report.rank),
            unit.text(engine.memory.get("cache", 0)),
            unit.text(_in_all(rank, engine.memory)),
            unit.text(rank.planned.moments.get("answering", 0)),
            unit.text(engine.left),
            unit.text(engine.handed_over),
        )
        for rank, engine in found
    )
    header = (
        f"answers, {unit.name}\nrank", "cached\nlatents", "in all", "planned", "left in\nthe step",
        "weights\nhanded over",
    )  # fmt: skip
    return Grid(header, rows)


def _in_all(rank: SteppedRank, memory: Mapping[MemoryPart, int]) -> int:
    """With context, NCCL and workspaces, which are the plan's."""
    return sum(memory.values()) + rank.planned.memory_bytes.get("allocator", 0)


def work(rehearsal: Rehearsal) -> Grid:
    """What the step of each rank launches, and where its host waits."""
    rows = tuple(
        (
            name(rank, several=True),
            f"{operations.kernels:,}",
            f"{operations.bytes / 1e9:,.0f}",
            f"{len(rank.report.collectives):,}",
            f"{sum(rank.report.synchronisations.values()):,}",
        )
        for rank in rehearsal.ranks
        if (operations := rank.report.operations) is not None
    )
    header = ("rank", "kernels", "GB moved", "collectives", "host\nwaits")
    return Grid(header, rows)


def _percent(share: float | None) -> str:
    return "—" if share is None else f"{100 * share:.1f}"


def _shown(ranks: Sequence[SteppedRank]) -> Iterable[tuple[MemoryPart, str]]:
    for part, label in MEMORY.items():
        if any(rank.memory.get(part) or rank.planned.memory_bytes.get(part) for rank in ranks):
            yield part, label


def name(rank: SteppedRank, several: bool) -> str:
    """A rank with its stages, and of several steps the schedule below."""
    text = f"{rank.report.rank} {stages_text(rank.planned)}"
    return f"{text}\n{rank.case.schedule}" if several else text
