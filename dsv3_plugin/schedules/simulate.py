"""When everything happens: exact event simulation of a schedule.

Each rank runs its actions in order; an action starts when its rank is free and everything it needs
has arrived. A result leaves when its action ends (an overlapped pair delivers both at its end), or
when the link of its two ranks is free again, occupies the link, and arrives `latency` later. Time
has the unit of the costs.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from dsv3_plugin.schedules.actions import (
    BACKWARD,
    FORWARD,
    WEIGHT,
    Action,
    Compute,
    Schedule,
    dependencies,
    result,
    sent_to,
)
from dsv3_plugin.schedules.costs import StageCosts
from dsv3_plugin.schedules.order import execution_order


class Span(NamedTuple):
    """One action in time."""

    slot: int
    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """A schedule in time.

    spans: per rank, in order.
    peak_activations: per rank, in units of one P-th of the model on one micro-batch.
    """

    schedule: Schedule
    spans: tuple[tuple[Span, ...], ...]
    peak_activations: tuple[float, ...]

    @property
    def makespan(self) -> float:
        return max(span.end for row in self.spans for span in row)

    @property
    def idle_per_rank(self) -> tuple[float, ...]:
        """Time that each rank does not compute between 0 and the makespan."""
        makespan = self.makespan
        return tuple(makespan - sum(span.end - span.start for span in row) for row in self.spans)

    @property
    def idle_fraction(self) -> float:
        """Idle time of all ranks / (ranks x makespan)."""
        return sum(self.idle_per_rank) / (len(self.spans) * self.makespan)

    def summary(self) -> dict[str, object]:
        """What `dsv3 schedule --json` prints."""
        return {
            "schedule": self.schedule.name,
            "pp": self.schedule.pp,
            "micro_batches": self.schedule.num_micro_batches,
            "makespan": self.makespan,
            "idle_fraction": self.idle_fraction,
            "idle_per_rank": list(self.idle_per_rank),
            "peak_activations": list(self.peak_activations),
            "stages": self.schedule.num_stages,
        }


def simulate(schedule: Schedule, costs: StageCosts) -> Timeline:
    """Run the schedule in time. Raises `UserError` where ranks wait for each other in a circle."""
    clock = [0.0] * schedule.pp
    spans: list[list[Span]] = [[] for _ in range(schedule.pp)]
    arrival: dict[tuple[Compute, int], float] = {}  # (result, rank) -> when it is there
    link_free: defaultdict[tuple[int, int], float] = defaultdict(float)  # (from, to) -> time
    for rank, slot, action in execution_order(schedule):
        start = clock[rank]
        for part in action.parts:
            for need in dependencies(schedule, part):
                start = max(start, arrival[need, rank])
        end = clock[rank] = start + costs.duration(action)
        spans[rank].append(Span(slot, action, start, end))
        for part in action.parts:
            given = result(part)
            if given is None:
                continue
            arrival[given, rank] = end
            peer = sent_to(schedule, part)
            if peer is not None:
                left = max(end, link_free[rank, peer]) + costs.occupancy
                link_free[rank, peer] = left
                arrival[given, peer] = left + costs.latency
    return Timeline(schedule, tuple(map(tuple, spans)), peak_activations(schedule, costs))


def peak_activations(schedule: Schedule, costs: StageCosts) -> tuple[float, ...]:
    """The most that each rank holds at once; it depends on the order alone.

    A forward takes its stage's activations from its start; the end of the full backward, or of the
    weight gradient, gives them back.
    """
    peaks = []
    for rank in range(schedule.pp):
        live = peak = 0.0
        for _, action in schedule.actions(rank):
            for part in action.parts:
                if part.kind == FORWARD:
                    live += costs.activation[part.stage]
            peak = max(peak, live)
            for part in action.parts:
                if part.kind in (BACKWARD, WEIGHT):
                    live -= costs.activation[part.stage]
        peaks.append(peak)
    return tuple(peaks)
