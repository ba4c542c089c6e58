"""1F1B-V: two chunks per rank in a V, as ZB-V places them, with whole backwards.

The order is ZB-V's, each backward in one where that computes the gradient of the input. It idles
more than ZB-V and less than 1F1B, and holds what 1F1B holds whatever is recomputed: where a
backward is divided, the operands of the weight gradients wait, and these can be more than what the
forward had kept.
"""

from dsv3_plugin.schedules.actions import BACKWARD, INPUT, WEIGHT, Compute, Schedule
from dsv3_plugin.schedules.zbv import zbv


def one_f_one_b_v(pp: int, micro_batches: int) -> Schedule:
    """Stages r and 2P-1-r on rank r; any number of micro-batches."""
    name = "1f1b_v"
    rows = zbv(pp, micro_batches, name).rows
    return Schedule(name, tuple(tuple(_whole(part) for part in row) for row in rows))


def _whole(part: Compute | None) -> Compute | None:
    if part is None or part.kind == WEIGHT:
        return None
    return part._replace(kind=BACKWARD) if part.kind == INPUT else part
