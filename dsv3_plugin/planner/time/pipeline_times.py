"""How long a schedule takes with a run's stages, and how long each rank computes in it."""

from collections.abc import Callable
from dataclasses import dataclass

from dsv3_plugin.schedules.costs import StageCosts
from dsv3_plugin.schedules.simulate import Program

_LONG, _SHORTER, _SHORT = 6, 5, 4
"""In micro-batches per rank: what is longer is followed from two shorter ones."""


@dataclass(frozen=True)
class PipelineTimes:
    """A schedule in time, in seconds.

    Attributes:
        makespan: from the first forward to the last backward.
        busy: per rank, time that it computes or sends what nothing hides.
    """

    makespan: float
    busy: tuple[float, ...]

    def ahead(self, earlier: "PipelineTimes", steps: float) -> "PipelineTimes":
        """What follows where `steps` times the difference from `earlier` are added.

        While a schedule of uneven stages comes to its rhythm its slowest rank waits less and less:
        then the difference is less than that rank computes in it, which no long schedule keeps up.
        """
        computed = [now - before for now, before in zip(self.busy, earlier.busy, strict=True)]
        longer = max(self.makespan - earlier.makespan, *computed, 0.0)
        busy = tuple(now + steps * more for now, more in zip(self.busy, computed, strict=True))
        return PipelineTimes(self.makespan + steps * longer, busy)


def pipeline_times(program: Program, costs: StageCosts) -> PipelineTimes:
    """A schedule simulated."""
    times = program.times(costs)
    busy = [0.0] * program.pp
    for (rank, _, _), (start, end) in zip(program.order, times, strict=True):
        busy[rank] += end - start
    return PipelineTimes(max(end for _, end in times), tuple(busy))


def repeated_pipeline_times(
    timed: Callable[[int], PipelineTimes], pp: int, micro_batches: int
) -> PipelineTimes:
    """The same for a schedule that exists for any number of micro-batches.

    Between its beginning and its end such a schedule repeats itself, so a long one takes what two
    shorter ones say: the time of so many more micro-batches.

    Args:
        timed: the times of the schedule of so many micro-batches.
        pp: ranks of the pipeline.
        micro_batches: of the schedule that is asked for.
    """
    numbers = simulated(pp, micro_batches)
    if len(numbers) == 1:
        return timed(micro_batches)
    short, longer = map(timed, numbers)
    return longer.ahead(short, (micro_batches - numbers[1]) / (numbers[1] - numbers[0]))


def simulated(pp: int, micro_batches: int) -> tuple[int, ...]:
    """The numbers of micro-batches that `repeated_pipeline_times` asks for."""
    if micro_batches <= _LONG * pp:
        return (micro_batches,)
    return _SHORT * pp, _SHORTER * pp
