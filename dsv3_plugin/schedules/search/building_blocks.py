"""Schedules made of one block, repeated for every micro-batch: the means to hold less memory.

Pipeline Parallelism with Controllable Memory (arXiv 2405.15362): on a V, let every micro-batch do
the same thing T = 6 steps after the one before, six being a rank's computations F, I and W of its
two stages, all taken as equally long. A block is then four straight lines over the ranks, one for
the forward down, the forward back, the gradient down and the gradient back. It has no collisions
when on every rank their steps differ modulo 6; the two weight gradients take the steps left.
How long a rank holds a micro-batch, over T, is the memory: about P/3 at the least (the paper's
V-Min), P/2 (V-Half), P (ZB-V) and more, against less and less idle time.

Only the order is kept; real costs, and pairs, are for the simulator and the local search.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from dsv3_plugin.schedules.actions import FORWARD, INPUT, WEIGHT, Compute

PERIOD = 6


class Block(NamedTuple):
    """Steps of a micro-batch: near stage r of rank r, far stage 2P-1-r.

    down, back: steps per rank of the forward on its two ways; gradient_down, gradient_back too.
    far, far_gradient, near_gradient: step on rank 0 of the far forward and gradient, of the near
    gradient. The near forward of rank 0 is at step 0.
    """

    down: int
    back: int
    gradient_down: int
    gradient_back: int
    far: int
    far_gradient: int
    near_gradient: int

    def steps(self, rank: int) -> tuple[int, int, int, int]:
        """Near forward, far forward, far gradient and near gradient of a rank."""
        return (
            rank * self.down,
            self.far - rank * self.back,
            self.far_gradient + rank * self.gradient_down,
            self.near_gradient - rank * self.gradient_back,
        )

    def memory(self, rank: int, near: float, far: float) -> float:
        """About what a rank holds, its stages' activations being `near` and `far`."""
        near_forward, far_forward, far_gradient, near_gradient = self.steps(rank)
        return (
            near * (near_gradient - near_forward + 2) + far * (far_gradient - far_forward + 2)
        ) / PERIOD


def blocks(pp: int) -> Iterator[Block]:
    """All blocks without collisions whose lines cross at most five steps from rank to rank."""
    ranks = range(min(pp, PERIOD))  # collisions repeat after `PERIOD` ranks
    slopes, waits = range(1, PERIOD), range(1, PERIOD + 1)

    def collide(block: Block, lines: int) -> bool:
        return any(
            len({step % PERIOD for step in block.steps(rank)[:lines]}) < lines for rank in ranks
        )

    for down, back, wait in product(slopes, slopes, waits):
        far = (pp - 1) * (down + back) + wait
        two = Block(down, back, 0, 0, far, 0, 0)
        if collide(two, 2):
            continue
        for gradient_down, wait in product(slopes, waits):
            three = two._replace(gradient_down=gradient_down, far_gradient=far + wait)
            if collide(three, 3):
                continue
            for gradient_back, wait in product(slopes, waits):
                block = three._replace(
                    gradient_back=gradient_back,
                    near_gradient=three.far_gradient
                    + (pp - 1) * (gradient_down + gradient_back)
                    + wait,
                )
                if not collide(block, 4):
                    yield block


def repeated(block: Block, pp: int, micro_batches: int) -> list[list[Compute]]:
    """Rows of the schedule that repeats a block."""
    rows = []
    for rank in range(pp):
        near, far = rank, 2 * pp - 1 - rank
        near_forward, far_forward, far_gradient, near_gradient = block.steps(rank)
        near_weight, far_weight = _weights(block.steps(rank))
        line = [
            (near_forward, near, FORWARD),
            (far_forward, far, FORWARD),
            (far_gradient, far, INPUT),
            (near_gradient, near, INPUT),
            (near_weight, near, WEIGHT),
            (far_weight, far, WEIGHT),
        ]
        events = sorted(
            (step + PERIOD * m, Compute(stage, kind, m))
            for step, stage, kind in line
            for m in range(micro_batches)
        )
        rows.append([part for _, part in events])
    return rows


def _weights(steps: Sequence[int]) -> tuple[int, int]:
    """Steps of the near and the far weight gradient: those left, so that they come soonest."""
    _, _, far_gradient, near_gradient = steps
    taken = {step % PERIOD for step in steps}
    one, other = (step for step in range(PERIOD) if step not in taken)

    def after(gradient: int, free: int) -> int:
        return gradient + (free - gradient) % PERIOD

    ways = [(one, other), (other, one)]
    return min(((after(near_gradient, a), after(far_gradient, b)) for a, b in ways), key=sum)
