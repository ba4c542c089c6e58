"""When everything happens: exact event simulation of a schedule.

Each rank runs its actions in order; an action starts when its rank is free and everything it needs
has arrived. A result leaves when its action ends (an overlapped pair delivers both at its end). How
long it is under way, its links say. Time has the unit of the costs.
"""

from operator import itemgetter
from typing import Literal

from dsv3_plugin.schedules.actions import (
    Action,
    Compute,
    Overlap,
    Schedule,
    dependencies,
    result,
    sent_to,
)
from dsv3_plugin.schedules.costs import StageCosts
from dsv3_plugin.schedules.nccl import nccl_spans, on_one, on_pairs
from dsv3_plugin.schedules.order import execution_order
from dsv3_plugin.schedules.timeline import Span, Timeline, peak_activations

Links = Literal["ideal", "nccl", "nccl-one"]
"""How messages travel between ranks.

ideal: a message leaves when the link of its two ranks is free again, occupies it, and arrives
    `latency` later; the other way has a link of its own.
nccl: in batches that queue on a communicator for every two ranks, and end when both have posted
    theirs (`schedules.nccl`): what the executor does.
nccl-one: the same on one communicator for the pipeline, all messages of a step in one batch.
"""


def simulate(schedule: Schedule, costs: StageCosts, links: Links = "ideal") -> Timeline:
    """Run the schedule in time.

    Raises:
        UserError: ranks wait for each other in a circle.
    """
    if links == "ideal":
        spans = _ideal_spans(schedule, costs)
    else:
        spans = nccl_spans(schedule, costs, on_one if links == "nccl-one" else on_pairs)
    return Timeline(schedule, tuple(map(tuple, spans)), peak_activations(schedule, costs))


def _ideal_spans(schedule: Schedule, costs: StageCosts) -> list[list[Span]]:
    program = Program(schedule)
    spans: list[list[Span]] = [[] for _ in range(schedule.pp)]
    for (rank, slot, action), (start, end) in zip(program.order, program.times(costs), strict=True):
        spans[rank].append(Span(slot, action, start, end))
    return spans


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
        return max(map(itemgetter(1), self.times(costs)))


_Step = tuple[int, int, tuple[int, ...], tuple[tuple[int, int], ...]]
"""An action in numbers: rank, action as costs tell it apart, messages that it waits for, and what
it sends, (message, link) each."""


def _of_any_micro_batch(action: Action) -> Action:
    """The action as it costs: micro-batches are alike."""
    if isinstance(action, Overlap):
        halves = (_of_any_micro_batch(half) for half in action.parts)
        return Overlap(*halves)
    return Compute(action.stage, action.kind, 0)
