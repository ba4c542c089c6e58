"""Balanced layouts: against every layout there is, for small models; and of DeepSeek-V3."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.planner.layout.balanced import OF_BOUND, OF_MEAN, balanced
from dsv3_plugin.planner.layout.division import Division
from dsv3_plugin.planner.layout.filling import DoesNotFit, leading_layers

LINE = ((0,), (1,), (2,))
A_V = ((0, 3), (1, 2))
LOOPS = ((0, 2), (1, 3))
TWO_COPIES = ((0, 3), (1, 2), (2, 1), (3, 0))


def every_layout(layers: int, depth: int) -> Iterator[tuple[int, ...]]:
    """All ways of laying out so many layers, at least one on each stage but the ends."""
    if depth == 1:
        yield (layers,)
        return
    for first in range(layers + 1):
        for rest in every_layout(layers - first, depth - 1):
            if all(rest[:-1]):
                yield (first, *rest)


@st.composite
def divisions(draw, patterned: bool = False) -> Division:
    ranks = draw(st.sampled_from([LINE, A_V, LOOPS, TWO_COPIES]))
    depth = 1 + max(max(held) for held in ranks)
    dense = draw(st.integers(0, 4))
    moe = draw(st.integers(max(1, depth - 2 - dense), 6))
    kinds = [0] * dense + [1] * moe
    if patterned:
        kinds = draw(st.lists(st.integers(0, 1), min_size=depth, max_size=9))
    times = {kind: draw(st.integers(1, 9)) for kind in ("embedding", "dense", "moe", "mtp", "head")}
    room = [draw(st.integers(2, 12)) for _ in ranks]

    def seconds(stages) -> float:
        return sum(number * times[kind] for stage in stages for kind, number in stage.kinds.items())

    def step(stages) -> float:
        """Stages alike are a shorter step, the earlier ones before the later."""
        busy = [seconds([stage]) for stage in stages]
        return sum((at + 1) * time**2 for at, time in enumerate(busy))

    def memory(rank, stages) -> float:
        """A share of what this rank has room for."""
        return sum(stage.layers for stage in stages) / min(
            room[other] for other, held in enumerate(ranks) if set(held) == set(ranks[rank])
        )

    return Division(tuple(kinds), draw(st.integers(0, 1)), ranks, seconds, step, memory, limit=1.0)


@given(divisions())
@settings(max_examples=150, deadline=None)
def test_no_layout_gives_the_slowest_rank_less_than_the_bound(division):
    fitting = [
        layers
        for layers in every_layout(len(division.kinds), division.depth)
        if division.fits(layers)
    ]
    if not fitting:
        with pytest.raises(DoesNotFit):
            balanced(division)
        return
    found = balanced(division)
    assert found.layers in fitting
    assert found.bound == min(max(division.busy(layers)) for layers in fitting)
    assert found.slowest == max(division.busy(found.layers))
    assert found.slowest <= max(OF_BOUND * found.bound, OF_MEAN * found.mean)


@given(divisions(patterned=True))
@settings(max_examples=50, deadline=None)
def test_layouts_of_any_pattern_are_layouts(division):
    try:
        found = balanced(division)
    except DoesNotFit:
        return
    assert found.layers in set(every_layout(len(division.kinds), division.depth))
    assert division.fits(found.layers)
    assert found.slowest <= max(OF_BOUND * found.bound, OF_MEAN * found.mean)


@given(divisions())
@settings(max_examples=50, deadline=None)
def test_more_simulations_find_no_longer_step(division):
    try:
        few = balanced(division, simulations=1)
    except DoesNotFit:
        return
    many = balanced(division, simulations=10_000)
    assert many.step <= few.step
    worst = max(OF_BOUND * many.bound, OF_MEAN * many.mean)
    for taken in range(division.depth):
        for taking in range(division.depth):
            layers = list(many.layers)
            layers[taken] -= 1
            layers[taking] += 1
            if layers[taken] >= division.least(taken) and division.fits(layers):
                step = division.step(division.stages(layers))
                assert step >= many.step or max(division.busy(layers)) > worst * (1 - 1e-9)


def test_layers_before_the_last_change_of_kind():
    def of(*kinds: int) -> int:
        return leading_layers(Division(kinds, 0, LINE, len, len))

    assert of(0, 0, 0, 1, 1) == 3
    assert of(1, 1, 1) == of(0, 0) == 0
    assert of(0, 1, 0, 1) == 3
