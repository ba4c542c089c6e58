"""Registered schedules made ready once: many layouts and settings are timed and weighed on each.

What repeats itself is looked at where it is short: between its beginning and its end a long
schedule does the same for every further micro-batch, so it holds no more than one of five
micro-batches per rank, and its time follows from shorter ones (`pipeline_times.py`).
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from dsv3_plugin.planner.memory.peak import RankOrder, rank_orders
from dsv3_plugin.planner.time.pipeline_times import simulated
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.simulate import Program


@dataclass(frozen=True)
class Registered:
    """A schedule of the registry but for its micro-batches.

    Attributes:
        name: in the registry.
        pp: ranks of the pipeline.
        stages_per_rank: where the schedule leaves them open.
        overlap: in overlapped pairs, where there are both forms.
    """

    name: str
    pp: int
    stages_per_rank: int | None = None
    overlap: bool = False

    def schedule(self, micro_batches: int) -> Schedule:
        """The schedule of so many micro-batches; raises UserError where there is none."""
        return _schedule(self, micro_batches)

    def program(self, micro_batches: int) -> Program:
        """The same, ready to be timed."""
        return _program(self, micro_batches)

    def orders(self, micro_batches: int) -> tuple[RankOrder, ...]:
        """What each rank's order says of its memory, its chunks in the placement's order."""
        shorter = simulated(self.pp, micro_batches)[-1]
        more = micro_batches / shorter
        return tuple(
            replace(order, micro_batches=tuple(round(n * more) for n in order.micro_batches))
            for order in _orders(self, shorter)
        )


@lru_cache(maxsize=64)
def _schedule(registered: Registered, micro_batches: int) -> Schedule:
    kind = SCHEDULES[registered.name]
    return kind.schedule(
        registered.pp, micro_batches, registered.stages_per_rank, overlap=registered.overlap
    )


@lru_cache(maxsize=64)
def _program(registered: Registered, micro_batches: int) -> Program:
    return Program(_schedule(registered, micro_batches))


@lru_cache(maxsize=256)
def _orders(registered: Registered, micro_batches: int) -> tuple[RankOrder, ...]:
    placement = SCHEDULES[registered.name].placement(registered.pp, registered.stages_per_rank)
    return rank_orders(_schedule(registered, micro_batches), placement)
