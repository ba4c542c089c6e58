"""The schedule of an evaluation: forwards alone, for any placement and number of micro-batches."""

from dsv3_plugin.schedules.actions import FORWARD, Compute, Schedule
from dsv3_plugin.schedules.placement import Placement


def forward_only(placement: Placement, micro_batches: int) -> Schedule:
    """Every micro-batch flows through the stages as soon as it can, the earliest first.

    With two copies of the model, micro-batches alternate between them.
    """
    rows: list[list[tuple[int, Compute]]] = [[] for _ in placement.chunks]
    for micro_batch in range(micro_batches):
        copy = micro_batch % placement.copies
        for model_stage in range(placement.depth):
            stage = copy * placement.depth + model_stage
            part = Compute(stage, FORWARD, micro_batch)
            # In time units of one stage: when a pipeline without conflicts would compute it.
            rows[placement.rank_of(stage)].append((micro_batch + model_stage, part))
    ordered = (
        tuple(part for _, part in sorted(row, key=lambda timed: (timed[0], timed[1].micro_batch)))
        for row in rows
    )
    return Schedule("forward", tuple(ordered))
