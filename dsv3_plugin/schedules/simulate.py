"""When everything happens: exact event simulation of a schedule.

Each rank runs its actions in order; an action starts when its rank is free and everything it needs
has arrived. A result leaves when its action ends (an overlapped pair delivers both at its end), or
when the link of its two ranks is free again, occupies the link, and arrives `latency` later. Time
has the unit of the costs.
"""

from dataclasses import dataclass
from typing import NamedTuple

from dsv3_plugin.schedules.actions import (
    BACKWARD,
    FORWARD,
    WEIGHT,
    Action,
    Compute,
    Overlap,
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
    program = Program(schedule)
    spans: list[list[Span]] = [[] for _ in range(schedule.pp)]
    for (rank, slot, action), (start, end) in zip(program.order, program.times(costs), strict=True):
        spans[rank].append(Span(slot, action, start, end))
    return Timeline(schedule, tuple(map(tuple, spans)), peak_activations(schedule, costs))


class Program:
    """A schedule made ready to be timed under many costs: who waits for whom is looked up once.

    Attributes:
        order: (rank, slot, action), every action after all that it needs.
        pp: its ranks.

    Raises:
        UserError: ranks wait for each other in a circle.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.order = execution_order(schedule)
        self.pp = schedule.pp
        messages: dict[tuple[Compute, int], int] = {}  # (result, rank) -> its number
        links: dict[tuple[int, int], int] = {}  # (from, to) -> its number
        self._actions: dict[Action, int] = {}  # as costs tell them apart -> its number
        self._steps: list[_Step] = []
        for rank, _, action in self.order:
            needs = [need for part in action.parts for need in dependencies(schedule, part)]
            # What a rank made itself is there before whatever it does next.
            arriving = tuple(messages[n, rank] for n in needs if (n, rank) in messages)
            sends = []
            for part in action.parts:
                given, peer = result(part), sent_to(schedule, part)
                if given is not None and peer is not None:
                    number = messages.setdefault((given, peer), len(messages))
                    sends.append((number, links.setdefault((rank, peer), len(links))))
            kind = self._actions.setdefault(_of_any_micro_batch(action), len(self._actions))
            self._steps.append((rank, kind, arriving, tuple(sends)))
        self._messages, self._links = len(messages), len(links)

    def times(self, costs: StageCosts) -> list[tuple[float, float]]:
        """Start and end of each action, in the order of `order`."""
        durations = [costs.duration(action) for action in self._actions]
        occupancy, latency = costs.occupancy, costs.latency
        clock = [0.0] * self.pp
        arrival = [0.0] * self._messages
        link_free = [0.0] * self._links
        times = []
        for rank, kind, needs, sends in self._steps:
            start = clock[rank]
            for need in needs:
                if arrival[need] > start:
                    start = arrival[need]
            end = clock[rank] = start + durations[kind]
            times.append((start, end))
            for message, link in sends:
                free = link_free[link]
                left = (end if end > free else free) + occupancy
                link_free[link] = left
                arrival[message] = left + latency
        return times

    def makespan(self, costs: StageCosts) -> float:
        """When the last action ends."""
        return max(end for _, end in self.times(costs))


_Step = tuple[int, int, tuple[int, ...], tuple[tuple[int, int], ...]]
"""An action in numbers: rank, action as costs tell it apart, messages that it waits for, and what
it sends, (message, link) each."""


def _of_any_micro_batch(action: Action) -> Action:
    """The action as it costs: micro-batches are alike."""
    if isinstance(action, Overlap):
        halves = (_of_any_micro_batch(half) for half in action.parts)
        return Overlap(*halves)
    return Compute(action.stage, action.kind, 0)


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
