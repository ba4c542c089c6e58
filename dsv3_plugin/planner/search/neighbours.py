"""Ways of running a recipe that differ from one in a single choice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dsv3_plugin.planner.search.candidate import Choice
from dsv3_plugin.planner.search.estimate import Estimates
from dsv3_plugin.planner.search.space import with_other_schedules
from dsv3_plugin.planner.search.weigh import Scales

SAME = 0.001
"""Steps this close, relatively, are one to a planner."""


@dataclass(frozen=True)
class Neighbours:
    """One choice of a way, and what might stand in its place.

    Attributes:
        made: in words.
        others: (in words, the whole choice so).
    """

    made: str
    others: tuple[tuple[str, Choice], ...]


def neighbours(
    choice: Choice, scales: Scales, estimates: Estimates, levels: Sequence[tuple[str, ...]]
) -> Iterator[Neighbours]:
    """For each choice of a way, what might stand in its place.

    Args:
        choice: the way.
        scales: what weighs it.
        estimates: choose among schedules.
        levels: what may be computed again (`recomputed`).
    """
    for name in ("tensor", "pipeline", "context", "expert", "micro_batch"):
        size = getattr(choice, name)
        sizes = [size // 2] * (size > 1 and size % 2 == 0) + [size * 2]
        others = tuple((f"{other}", _with(choice, name, other)) for other in sizes)
        yield Neighbours(f"{name.replace('_', '-')} {size}", others)
    if choice.pipeline > 1:
        others = _other_schedules(choice, scales, estimates)
        yield Neighbours(f"schedule {choice.schedule}", others)
    at = levels.index(choice.recompute) if choice.recompute in levels else None
    if at is not None:
        beside = [levels[i] for i in (at - 1, at + 1) if 0 <= i < len(levels)]
        others = tuple(
            (f"[{', '.join(level)}]", replace(choice, recompute=level)) for level in beside
        )
        yield Neighbours(f"recompute [{', '.join(choice.recompute)}]", others)
    if choice.expert > 1:
        found = {("alltoall", "bf16"), ("two_hop", choice.wire)} - {
            (choice.dispatcher, choice.wire)
        }
        others = tuple(
            (kind, replace(choice, dispatcher=kind, wire=wire))
            for kind, wire in sorted(found)
            if kind != choice.dispatcher
        )
        yield Neighbours(f"dispatcher {choice.dispatcher}", others)


def _with(choice: Choice, name: str, size: int) -> Choice:
    """A way with another size; without a pipeline there is one schedule."""
    changed = replace(choice, **{name: size})
    if changed.pipeline == 1:
        return replace(changed, schedule="1f1b", ramp_schedule=None, virtual_stages=None)
    return changed


def _other_schedules(
    choice: Choice, scales: Scales, estimates: Estimates
) -> tuple[tuple[str, Choice], ...]:
    """The two next best schedules of the same division."""
    alike = [
        other
        for other in with_other_schedules(scales.given, choice)
        if other.schedule != choice.schedule
    ]
    by_name: dict[str, Choice] = {}
    for other in sorted(alike, key=estimates.seconds):
        by_name.setdefault(other.schedule, other)
    return tuple([*by_name.items()][:2])
