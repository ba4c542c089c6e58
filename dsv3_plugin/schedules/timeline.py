"""A schedule in time: when each rank computes what, and what it holds at its most."""

from dataclasses import dataclass
from typing import NamedTuple

from dsv3_plugin.schedules.actions import BACKWARD, FORWARD, WEIGHT, Action, Schedule
from dsv3_plugin.schedules.costs import StageCosts


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
