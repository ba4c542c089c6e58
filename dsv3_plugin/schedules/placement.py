"""Where the stages of the model lie: read off a schedule, for those who build and run them.

A schedule names stages and the ranks that compute them. Rank r's *chunks* are its stages from the
embedding towards the loss: one for 1F1B, r and 2P-1-r for a V, and for DualPipe stage r of the
model and, in a second copy that runs the other way, stage P-1-r. The copy's stages count on from
the first's in the schedule (P..2P-1) but hold the same layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import Schedule


@dataclass(frozen=True)
class Placement:
    """Which stages each rank holds.

    Attributes:
        chunks: per rank, the schedule's stage of each of its chunks.
        depth: number of stages of the model.
        copies: 1, or 2 for DualPipe.
    """

    chunks: tuple[tuple[int, ...], ...]
    depth: int
    copies: int

    @property
    def chunks_per_rank(self) -> int:
        return len(self.chunks[0])

    def model_stage(self, stage: int) -> int:
        """The stage of the model that a stage of the schedule is, or copies."""
        return stage % self.depth

    def is_copy(self, stage: int) -> bool:
        """Whether a stage of the schedule belongs to the second copy of the model."""
        return stage >= self.depth

    def rank_of(self, stage: int) -> int:
        """The rank that holds a stage of the schedule."""
        return next(rank for rank, chunks in enumerate(self.chunks) if stage in chunks)

    @property
    def neighbours(self) -> frozenset[tuple[int, int]]:
        """Pairs of ranks, the lower first, that messages go between."""
        rank_of = {stage: rank for rank, chunks in enumerate(self.chunks) for stage in chunks}
        handed_on = (
            (rank_of[stage], rank_of[stage + 1])
            for stage in rank_of
            if self.model_stage(stage) < self.depth - 1
        )
        return frozenset((min(pair), max(pair)) for pair in handed_on if pair[0] != pair[1])

    @property
    def ends_meet(self) -> bool:
        """Whether the first and the last stage of the model share a rank.

        Then embedding, head and multi-token prediction share one embedding physically.
        """
        return self.rank_of(0) == self.rank_of(self.copies * self.depth - 1)


def pipeline_ranks(schedule: Schedule) -> list[int]:
    """The rank of each stage of the model, along the schedule's first pipeline.

    Raises:
        UserError: it has several, and not all have as many stages.
    """
    first = schedule.streams[0]
    if any(len(stream) != len(first) for stream in schedule.streams):
        raise UserError("the pipelines of the schedule have different numbers of stages")
    return [schedule.stage_ranks[stage] for stage in first]


def placement_of(schedule: Schedule) -> Placement:
    """The placement that a schedule implies."""
    copies = len(schedule.streams)
    depth = schedule.num_stages // copies
    ranks = schedule.stage_ranks
    chunks = tuple(
        # By the stage of the model: upstream wants the last stage in the last chunk of its rank.
        tuple(sorted((s for s in ranks if ranks[s] == rank), key=lambda stage: stage % depth))
        for rank in range(schedule.pp)
    )
    return Placement(chunks, depth, copies)


def placement_on(stage_ranks: Sequence[int]) -> Placement:
    """The placement of one copy of the model, its stages on the given ranks in order."""
    chunks = tuple(
        tuple(stage for stage, holder in enumerate(stage_ranks) if holder == rank)
        for rank in range(max(stage_ranks) + 1)
    )
    return Placement(chunks, depth=len(stage_ranks), copies=1)


def stage_placement(pp: int, vp: int) -> tuple[int, ...]:
    """The rank of each of the P x V stages: a line for one chunk per rank, a V for two, else loops.

    The V puts stages r and 2P-1-r on rank r; loops put r, P+r, 2P+r, ... there, as Megatron does.
    """
    line = tuple(range(pp))
    return line + line[::-1] if vp == 2 else line * vp
