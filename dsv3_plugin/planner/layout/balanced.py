"""Which decoder layers lie on which stage, so that the slowest rank has as little as can be.

Layers are whole and stages contiguous; the embedding lies on the first stage, multi-token
prediction and the head on the last. A rank holds one stage (a line), two that a V folds onto each
other, every P-th (loops), or one and the copy of another (DualPipe): its seconds and its bytes are
those of its stages together.

All layers after the last change of kind are alike (58 of DeepSeek-V3's 61). So for one way of
laying out those before them, the best is found by giving one layer after the other to the rank that
is then least busy; and all such ways are tried. What the slowest rank has then is the *bound*: no
layout gives it less. Many come near it, and differ in the bubble. Of a sample of those within a
tolerance, improved by moving single layers, the one is taken whose step is shortest when it is
simulated, and of equal steps the one whose fullest rank holds least.

Where kinds alternate further down the model, the ways are too many: then the bound is what moving
single layers came to, and nothing proves that there is none below it.
"""

import functools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dsv3_plugin.planner.layout.division import Division
from dsv3_plugin.planner.layout.filling import (
    MOST_LEADING,
    DoesNotFit,
    Filling,
    leading_layers,
    ways_to_begin,
)

OF_MEAN, OF_BOUND = 1.03, 1.01
"""The slowest rank may take so much of the mean of all ranks, or else of the bound."""

_EPSILON = 1e-9
"""Times this close, relatively, are equal."""

_SPREAD = (math.sqrt(5) - 1) / 2
"""Multiples of it are as far from each other, modulo 1, as can be."""


_TRIES = 20
"""Moves looked at for each step that may be simulated."""

Layers = tuple[int, ...]
"""Decoder layers of each stage, along the model."""


@dataclass(frozen=True)
class Balanced:
    """A layout that was found.

    Attributes:
        layers: decoder layers of each stage, along the model.
        slowest: seconds per micro-batch of the rank that has most.
        mean: of all ranks.
        bound: the least that the slowest can have.
        step: seconds of the step.
    """

    layers: Layers
    slowest: float
    mean: float
    bound: float
    step: float


def balanced(division: Division, simulations: int = 60) -> Balanced:
    """The layout whose step is shortest, of those that give ranks equal work.

    Args:
        division: what is divided.
        simulations: how many steps may be simulated to choose among them.

    Raises:
        DoesNotFit: no layout was found that fits into memory.
    """
    even = _most_even(division)
    bound, mean = _work(division, even)

    def tolerable(layers: Layers) -> bool:
        slowest, mean = _work(division, layers)
        return slowest <= max(OF_BOUND * bound, OF_MEAN * mean) and division.fits(layers)

    @functools.cache
    def cost(layers: Layers) -> tuple[float, float]:
        return division.step(division.stages(layers)), max(division.bytes(layers))

    sample = {even}
    if simulations > 1:  # else nothing is there to choose by
        for ceiling in (bound * (1 + _EPSILON), max(OF_BOUND * bound, OF_MEAN * mean)):
            sample |= set(_within(division, ceiling))
    ordered = sorted(filter(tolerable, sample), key=lambda layers: (_unevenness(layers), layers))
    looked_at = ordered[: max(1, simulations // 2)]
    best = min(looked_at, key=cost)
    best = _improved(best, cost, tolerable, simulations - len(looked_at))
    return Balanced(best, *_work(division, best), bound, cost(best)[0])


def _work(division: Division, layers: Layers) -> tuple[float, float]:
    """Seconds per micro-batch of the slowest rank, and of the mean."""
    busy = division.busy(layers)
    return max(busy), sum(busy) / len(busy)


def _unevenness(layers: Layers) -> int:
    """The less, the more alike stages are, which shortens the bubble at equal work of ranks."""
    return sum(number * number for number in layers)


def _most_even(division: Division) -> Layers:
    """A layout whose slowest rank has as little as can be.

    Raises:
        DoesNotFit: none was found that fits into memory.
    """
    found: list[tuple[float, Layers]] = []
    refusals: list[DoesNotFit] = []
    for leading in ways_to_begin(division):
        filling = Filling(division, leading)
        if filling.left < 0:
            continue
        try:
            filling.fill()
        except DoesNotFit as refusal:
            refusals.append(refusal)
        else:
            layers = tuple(filling.layers)
            found.append((_work(division, layers)[0], layers))
    if not found:
        raise min(refusals, key=lambda refusal: refusal.needed)
    _, layers = min(found)
    if leading_layers(division) <= MOST_LEADING:
        return layers

    def loads(layers: Layers) -> list[float]:
        return sorted(division.busy(layers), reverse=True)

    return _improved(layers, loads, division.fits, _TRIES * division.depth)


def _within(division: Division, ceiling: float) -> Iterator[Layers]:
    """A sample of layouts that give no rank more than `ceiling` seconds.

    What is uneven lies towards the loss, towards the embedding, or spread between.
    """
    groups = range(len(division.groups))
    orders = (groups, groups[::-1], sorted(groups, key=lambda group: group * _SPREAD % 1))
    for leading in ways_to_begin(division):
        for order in orders:
            for later in (False, True):
                filling = Filling(division, leading, later=later)
                if filling.left >= 0 and filling.fill_below(ceiling, order):
                    yield tuple(filling.layers)


def _improved(
    layers: Layers,
    cost: Callable[[Layers], Any],
    allowed: Callable[[Layers], bool],
    evaluations: int,
) -> Layers:
    """`layers`, with single ones moved from stage to stage as long as that makes it cost less.

    Args:
        layers: where to begin.
        cost: what is made less.
        allowed: whether a layout may be taken.
        evaluations: how often the cost may be asked for.
    """
    least, stages = cost(layers), range(len(layers))
    rng = random.Random(0)
    tries = _TRIES * evaluations
    improved = True
    while improved:
        improved = False
        moves = [(a, b) for a in stages if layers[a] > int(0 < a < stages[-1]) for b in stages]
        for a, b in rng.sample(moves, len(moves)):
            if evaluations <= 0 or tries <= 0:
                return layers
            tries -= 1
            moved = tuple(n - (s == a) + (s == b) for s, n in enumerate(layers))
            if a == b or not allowed(moved):
                continue
            evaluations -= 1
            now = cost(moved)
            if now < least:
                layers, least, improved = moved, now, True
                break
    return layers
