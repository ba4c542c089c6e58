"""1F1B: fill the pipeline, then one forward and one backward in turn (PipeDream-Flush, Megatron).

Bubble (P-1)(F+B). Rank r holds at most P-r micro-batches.
"""

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import BACKWARD, FORWARD, Compute, Schedule


def one_f_one_b(pp: int, micro_batches: int) -> Schedule:
    """Stage r on rank r; any number of micro-batches."""
    if micro_batches < 1:
        raise UserError("1f1b needs at least one micro-batch")
    rows = []
    for rank in range(pp):
        warmup = min(pp - 1 - rank, micro_batches)
        row = [Compute(rank, FORWARD, m) for m in range(warmup)]
        for m in range(micro_batches):
            if warmup + m < micro_batches:
                row.append(Compute(rank, FORWARD, warmup + m))
            row.append(Compute(rank, BACKWARD, m))
        rows.append(tuple(row))
    return Schedule("1f1b", tuple(rows))
