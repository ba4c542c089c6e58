"""ZB-V: two chunks per rank in a V, zero bubble when F = I = W (arXiv 2401.10241, section 6).

Rank r holds stages r and 2P-1-r, so the loss comes back to rank 0 and both ends of the model share
a rank. Peak activation memory is that of 1F1B. The order, idle cells included, is that of
torch.distributed.pipelining's ScheduleZBVZeroBubble: with fewer than 2P-1 micro-batches the pattern
of 2P-1 is laid out and the cells of the missing ones stay idle.
"""

from itertools import count

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import Compute, Schedule


def zbv(pp: int, micro_batches: int, name: str = "zbv") -> Schedule:
    """Stages r and 2P-1-r on rank r; any number of micro-batches.

    name: what it is called in an error, where another schedule is made of it.
    """
    if micro_batches < 1:
        raise UserError(f"{name} needs at least one micro-batch")
    filled = max(micro_batches, 2 * pp - 1)
    rows = []
    for rank in range(pp):
        near, far = rank, 2 * pp - 1 - rank
        numbers = {(stage, kind): count() for stage in (near, far) for kind in "FIW"}
        phases = [
            # (times, pattern): fill; forwards of both chunks; first backwards
            (2 * (pp - rank) - 1, [(near, "F")]),
            (rank, [(far, "F"), (near, "F")]),
            (pp - rank, [(far, "F"), (far, "I"), (far, "W")]),
            # steady state, with and then without new micro-batches
            (
                filled - 2 * pp + rank + 1,
                [(near, "F"), (near, "I"), (near, "W"), (far, "F"), (far, "I"), (far, "W")],
            ),
            (pp - rank - 1, [(near, "I"), (near, "W"), (far, "F"), (far, "I"), (far, "W")]),
            # drain: weight gradients fill the waits
            (rank, [(near, "I"), (far, "I")]),
            (pp - rank, [(near, "I"), (near, "W")]),
            (rank, [(far, "W")]),
            (rank, [(near, "W")]),
        ]
        row = [
            Compute(stage, kind, next(numbers[stage, kind]))
            for times, pattern in phases
            for _ in range(times)
            for stage, kind in pattern
        ]
        cells = (part if part.micro_batch < micro_batches else None for part in row)
        rows.append((*[None] * rank, *cells))
    return Schedule("zbv", tuple(rows))
