"""Every pipeline schedule by name: one row says what recipes, commands and tables must know of it.

A new schedule is one file with its function and one row here; nothing else names schedules.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.interleaved import interleaved
from dsv3_plugin.schedules.one_f_one_b import one_f_one_b
from dsv3_plugin.schedules.one_f_one_b_v import one_f_one_b_v
from dsv3_plugin.schedules.placement import (
    Placement,
    placement_of,
    placement_on,
    stage_placement,
)
from dsv3_plugin.schedules.zb1p import zb1p
from dsv3_plugin.schedules.zbv import zbv

_STAGES_PER_RANK = 2  # where the user may choose, and does not
_MANY_RANKS = 1024  # what suffices for so many suffices for fewer


MOST_PASSES = 1 << 18
"""Micro-batches times stages of a schedule; DeepSeek-V3's has some thousands."""


def refuse_larger(stages: int, micro_batches: int) -> None:
    """Raise UserError for a schedule that is larger than any that is run."""
    if stages * micro_batches > MOST_PASSES:
        raise UserError(
            f"{micro_batches:,} micro-batches through {stages:,} stages are more than a schedule "
            f"may have ({MOST_PASSES:,} passes of a stage)"
        )


@dataclass(frozen=True)
class ScheduleKind:
    """What is known of a schedule by its name. P is the number of ranks.

    Attributes:
        name: as recipes and `dsv3 schedule` spell it.
        summary: one line for tables.
        make: the schedule for (ranks, micro-batches) or, where the user chooses them, for (ranks,
            micro-batches, stages per rank). None: it has to be searched for, which takes the costs
            of the stages too (`search/search.py`).
        stages_per_rank: stages that each rank computes, those of a second copy of the model
            included; None: as many as the user says.
        least_micro_batches: the fewest that it exists for, as a function of P.
        multiple: what the number of micro-batches must be a multiple of.
        even_ranks: whether P must be even.
        upstream_multiple: in place of `multiple` where upstream's executor runs it, as a function
            of P; None: upstream cannot run it.
        make_overlapped: as `make`, with overlapped pairs, where the schedule has both forms.
    """

    name: str
    summary: str
    make: Callable[..., Schedule] | None
    stages_per_rank: int | None
    least_micro_batches: Callable[[int], int] = lambda pp: 1
    multiple: int = 1
    even_ranks: bool = False
    upstream_multiple: Callable[[int], int] | None = None
    make_overlapped: Callable[..., Schedule] | None = None

    @property
    def searched(self) -> bool:
        """Whether it has to be searched for."""
        return self.make is None

    @property
    def takes_stages_per_rank(self) -> bool:
        """Whether `schedule` reads its `stages_per_rank`; a search reads them off the costs."""
        return self.stages_per_rank is None and not self.searched

    @property
    def runs_upstream(self) -> bool:
        """Whether upstream's executor can run it."""
        return self.upstream_multiple is not None

    def exists(self, pp: int, micro_batches: int) -> bool:
        """Whether there is a schedule of this size."""
        return (
            micro_batches >= self.least_micro_batches(pp)
            and micro_batches % self.multiple == 0
            and not (self.even_ranks and pp % 2)
        )

    @property
    def takes_any_number(self) -> bool:
        """Whether any number of micro-batches will do."""
        return self.multiple == 1 and self.least_micro_batches(_MANY_RANKS) == 1

    def schedule(
        self,
        pp: int,
        micro_batches: int,
        stages_per_rank: int | None = None,
        *,
        overlap: bool = False,
    ) -> Schedule:
        """The schedule of a size; not for those that have to be searched for.

        stages_per_rank: read only where the user chooses them.

        Raises:
            UserError: it does not exist for this size, or is larger than any that is run.
        """
        make = self.make_overlapped if overlap else self.make
        assert make is not None
        if not self.takes_stages_per_rank:
            refuse_larger(pp * (self.stages_per_rank or 1), micro_batches)
            return make(pp, micro_batches)
        per_rank = _STAGES_PER_RANK if stages_per_rank is None else stages_per_rank
        refuse_larger(pp * per_rank, micro_batches)
        return make(pp, micro_batches, per_rank)

    def forms(
        self, pp: int, micro_batches: int, stages_per_rank: int | None = None
    ) -> Iterator[Schedule]:
        """The schedule of a size without and with overlapped pairs, as far as they exist."""
        for overlap in (False, True):
            if (self.make_overlapped if overlap else self.make) is not None:
                with contextlib.suppress(UserError):
                    yield self.schedule(pp, micro_batches, stages_per_rank, overlap=overlap)

    def placement(self, pp: int, stages_per_rank: int | None = None) -> Placement:
        """Which rank holds which stage; read off the smallest schedule where there is one.

        Raises:
            UserError: it does not exist for this number of ranks.
        """
        if self.searched:
            return placement_on(stage_placement(pp, stages_per_rank or _STAGES_PER_RANK))
        return placement_of(self.schedule(pp, self.least_micro_batches(pp), stages_per_rank))


_KINDS = (
    ScheduleKind(
        "1f1b",
        "fill, then one forward and one backward in turn",
        one_f_one_b,
        stages_per_rank=1,
        upstream_multiple=lambda pp: 1,
    ),
    ScheduleKind(
        "interleaved",
        "1F1B over several chunks of the model per rank",
        interleaved,
        stages_per_rank=None,
        least_micro_batches=lambda pp: pp,
        upstream_multiple=lambda pp: pp,
        make_overlapped=partial(interleaved, overlap=True),
    ),
    ScheduleKind(
        "zb1p",
        "1F1B whose weight gradients fill the idle time",
        zb1p,
        stages_per_rank=1,
    ),
    ScheduleKind(
        "1f1b_v",
        "1F1B over two chunks per rank in a V",
        one_f_one_b_v,
        stages_per_rank=2,
    ),
    ScheduleKind(
        "zbv",
        "two chunks per rank in a V, weight gradients in the idle time",
        zbv,
        stages_per_rank=2,
    ),
    ScheduleKind(
        "dualpipe",
        "two copies of the model, in opposite directions, in overlapped pairs",
        dualpipe,
        stages_per_rank=2,
        least_micro_batches=lambda pp: 2 * pp,
        multiple=2,
        even_ranks=True,
    ),
    ScheduleKind(
        "dualpipe_v",
        "DualPipe folded into a V: one copy, overlapped pairs",
        dualpipe_v,
        stages_per_rank=2,
        least_micro_batches=lambda pp: 2 * pp,
    ),
    ScheduleKind(
        "search",
        "the best found for the costs of the stages and a limit on memory",
        make=None,
        stages_per_rank=None,
    ),
)

SCHEDULES = {kind.name: kind for kind in _KINDS}

RAMPS = tuple(kind.name for kind in _KINDS if kind.takes_any_number)
"""Those that can run a growing batch."""
