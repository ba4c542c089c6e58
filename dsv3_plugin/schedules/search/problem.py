"""What a search is asked: stages on ranks, their costs, a number of micro-batches, a limit."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from dsv3_plugin.schedules.costs import StageCosts

EPSILON = 1e-9  # times, or amounts of memory, this close are equal


@dataclass(frozen=True)
class Problem:
    """What to schedule.

    stage_ranks: the rank of each stage, along the model.
    limit: the most activations a rank may hold, in P-ths of the model on one micro-batch.
    """

    stage_ranks: tuple[int, ...]
    micro_batches: int
    costs: StageCosts
    limit: float

    @cached_property
    def pp(self) -> int:
        """Number of ranks, P."""
        return max(self.stage_ranks) + 1

    @cached_property
    def rank_stages(self) -> tuple[tuple[int, ...], ...]:
        """The stages of each rank, along the model."""
        return tuple(
            tuple(stage for stage, holder in enumerate(self.stage_ranks) if holder == rank)
            for rank in range(self.pp)
        )

    @cached_property
    def hops(self) -> tuple[float, ...]:
        """Time from stage s to stage s + 1, for s = 0 .. S-2; nothing where both are one rank's."""
        hop = self.costs.latency + self.costs.occupancy
        return tuple(0.0 if a == b else hop for a, b in pairwise(self.stage_ranks))
