"""DualPipe: two pipelines in opposite directions over the same ranks (arXiv 2412.19437).

Rank r holds stage r of the model and stage P-1-r of a second copy that runs the other way, so
parameters are held twice. In the steady state every forward of one direction runs as an overlapped
pair with a backward of the other. Bubble (P/2-1)(F&B+B-3W), activations P+1.

`eight_steps` is the order of one rank, in the eight steps of DeepSeek's published DualPipe; cut in
half, with each rank facing its mirror image in itself, the same steps are DualPipeV
(`dualpipe_v.py`).
"""

from collections import deque
from itertools import count

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import (
    BACKWARD,
    FORWARD,
    INPUT,
    WEIGHT,
    Action,
    Compute,
    Overlap,
    Schedule,
)


class _Side:
    """One of the two stages of a rank, handing out its micro-batches in order."""

    def __init__(self, stage: int, first_micro_batch: int):
        self.stage = stage
        self._forwards = count(first_micro_batch)
        self._backwards = count(first_micro_batch)

    def forward(self) -> Compute:
        return Compute(self.stage, FORWARD, next(self._forwards))

    def backward(self, kind: str = BACKWARD) -> Compute:
        return Compute(self.stage, kind, next(self._backwards))


def eight_steps(
    position: int, depth: int, micro_batches: int, near: tuple[int, int], far: tuple[int, int]
) -> tuple[Action, ...]:
    """The order of one rank.

    position: distance of the rank from its end of the pipeline, 0 .. depth-1; depth-1 is the
        middle, where the two sides meet.
    depth: ranks from an end to the middle.
    micro_batches: micro-batches of each side.
    near, far: (stage, first micro-batch) of the side that enters at this end, and of the other.
    """
    side0, side1 = _Side(*near), _Side(*far)
    middle = position == depth - 1
    row: list[Action] = []
    pending: deque[Compute] = deque()  # weight gradients put off, oldest first

    def backward(side: _Side, put_off_weight: bool = False) -> None:
        if not put_off_weight:
            row.append(side.backward())
            return
        part = side.backward(INPUT)
        row.append(part)
        pending.append(part._replace(kind=WEIGHT))

    # 1. Fill: forwards of the near side.
    row += [side0.forward() for _ in range(2 * (depth - position - 1))]
    # 2. Forwards of both sides.
    for _ in range(position + 1):
        row += [side0.forward(), side1.forward()]
    # 3. First backwards of the far side, weights at once, and its next forwards.
    for _ in range(depth - position - 1):
        backward(side1, put_off_weight=True)
        row.append(pending.popleft())
        row.append(side1.forward())
    # 4. The steady state: overlapped pairs, one side forward and the other backward.
    for i in range(micro_batches - 2 * depth + position + 1):
        if i == 0 and middle:
            # Not overlapped: the backward's gradient is needed sooner than a pair would give it.
            row += [side0.forward(), side1.backward()]
        else:
            row.append(Overlap(side0.forward(), side1.backward()))
        row.append(Overlap(side1.forward(), side0.backward()))
    # 5. The near side has no forward left: backwards of the far side stand alone.
    for _ in range(depth - position - 1):
        backward(side1)
        row.append(Overlap(side1.forward(), side0.backward()))
    # 6. Backwards of both sides; the second half puts its weight gradients off.
    for i in range(position + 1):
        half, odd = i - (position + 1) // 2, position % 2 == 1
        backward(side1, put_off_weight=half > 0 or (half == 0 and odd))
        backward(side0, put_off_weight=half >= 0)
    # 7. Last backwards of the near side, between weight gradients.
    for _ in range(depth - position - 1):
        row.append(pending.popleft())
        backward(side0, put_off_weight=True)
    # 8. The weight gradients that are left.
    row += pending
    return tuple(row)


def dualpipe(pp: int, micro_batches: int) -> Schedule:
    """Stages 0..P-1 run micro-batches 0..M/2-1 down the ranks; stages P..2P-1 the rest, up them.

    Needs even P and even M >= 2P (M counts both directions).
    """
    if pp % 2 or pp < 2:
        raise UserError(f"dualpipe needs an even number of ranks (--pp), not {pp}; use dualpipe_v")
    if micro_batches % 2:
        raise UserError(
            f"dualpipe needs an even number of micro-batches, half for each direction, not "
            f"{micro_batches}; use dualpipe_v"
        )
    if micro_batches < 2 * pp:
        raise UserError(
            f"dualpipe needs at least 2 x P = {2 * pp} micro-batches (both directions together), "
            f"not {micro_batches}; use search"
        )
    half = micro_batches // 2
    rows = []
    for rank in range(pp):
        position = min(rank, pp - 1 - rank)
        down, up = (rank, 0), (2 * pp - 1 - rank, half)
        near, far = (down, up) if rank < pp // 2 else (up, down)
        rows.append(eight_steps(position, pp // 2, half, near, far))
    return Schedule("dualpipe", tuple(rows))
