"""ZB1P (ZB-H1): 1F1B whose backward is split, so that weight gradients fill the bubble.

Zero Bubble Pipeline Parallelism (arXiv 2401.10241). Bubble (P-1)(F+I-W), memory as 1F1B: rank r
runs its weight gradients r micro-batches late, which makes every rank hold P.
"""

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import FORWARD, INPUT, WEIGHT, Compute, Schedule


def zb1p(pp: int, micro_batches: int) -> Schedule:
    """Stage r on rank r; any number of micro-batches."""
    if micro_batches < 1:
        raise UserError("zb1p needs at least one micro-batch")
    rows = []
    for rank in range(pp):
        warmup = min(pp - 1 - rank, micro_batches)
        row = [Compute(rank, FORWARD, m) for m in range(warmup)]
        for m in range(micro_batches):
            if warmup + m < micro_batches:
                row.append(Compute(rank, FORWARD, warmup + m))
            row.append(Compute(rank, INPUT, m))
            if m >= rank:
                row.append(Compute(rank, WEIGHT, m - rank))
        row += [
            Compute(rank, WEIGHT, m) for m in range(max(0, micro_batches - rank), micro_batches)
        ]
        rows.append(tuple(row))
    return Schedule("zb1p", tuple(rows))
