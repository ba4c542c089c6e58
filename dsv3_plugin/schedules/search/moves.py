"""Small changes of the order of one rank, for the local search.

A move may break the memory limit or the order within a micro-batch; `local_search.py` checks both.
"""

import random
from collections.abc import Callable

from dsv3_plugin.schedules.actions import (
    BACKWARD,
    FORWARD,
    INPUT,
    WEIGHT,
    Action,
    Compute,
    Overlap,
)
from dsv3_plugin.schedules.search.problem import EPSILON, Problem
from dsv3_plugin.schedules.search.timed_rows import Row

Window = tuple[int, int, list[Action]]
"""(first, end, actions to put in place of those at first .. end-1)."""

Move = Callable[[Row, int, Problem, random.Random], Window | None]
"""From a row and a position in it to a window; None where it does not apply."""


def _swap(row: Row, at: int, problem: Problem, rng: random.Random) -> Window | None:
    """Exchange with the action after or before."""
    first = at if rng.random() < 0.5 else at - 1
    if first < 0 or first + 2 > len(row):
        return None
    return first, first + 2, [row[first + 1].action, row[first].action]


def _shift(row: Row, at: int, problem: Problem, rng: random.Random) -> Window | None:
    """Move by up to six places."""
    return _moved_to(row, at, at + rng.choice((-6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6)))


def _shift_weight(row: Row, at: int, problem: Problem, rng: random.Random) -> Window | None:
    """Move a weight gradient anywhere on the rank by up to eight places."""
    for _ in range(10):
        at = rng.randrange(len(row))
        if row[at].action.parts[0].kind == WEIGHT:
            return _moved_to(row, at, at + rng.randrange(-8, 9))
    return None


def _moved_to(row: Row, at: int, to: int) -> Window | None:
    if not 0 <= to < len(row) or to == at:
        return None
    action = row[at].action
    if to > at:
        return at, to + 1, [*(step.action for step in row[at + 1 : to + 1]), action]
    return to, at + 1, [action, *(step.action for step in row[to:at])]


def _split_pair(row: Row, at: int, problem: Problem, rng: random.Random) -> Window | None:
    """Take a pair apart, its weight gradient put off by up to eight places."""
    action = row[at].action
    if not isinstance(action, Overlap):
        return None
    backward = action.backward
    input_, weight = backward._replace(kind=INPUT), backward._replace(kind=WEIGHT)
    halves = [action.forward, input_] if rng.random() < 2 / 3 else [input_, action.forward]
    end = min(len(row), at + 1 + (rng.randrange(9) if rng.random() < 0.5 else 0))
    return at, end, [*halves, *(step.action for step in row[at + 1 : end]), weight]


def _split_backward(row: Row, at: int, problem: Problem, rng: random.Random) -> Window | None:
    """Split a full backward, its weight gradient put off by up to nine places."""
    action = row[at].action
    if isinstance(action, Overlap) or action.kind != BACKWARD:
        return None
    end = min(len(row), at + 1 + rng.randrange(10))
    between = (step.action for step in row[at + 1 : end])
    return at, end, [action._replace(kind=INPUT), *between, action._replace(kind=WEIGHT)]


def _form_pair(row: Row, at: int, problem: Problem, rng: random.Random) -> Window | None:
    """Overlap a forward and a backward that stand at most four places apart."""
    action = row[at].action
    if isinstance(action, Overlap) or action.kind == WEIGHT:
        return None
    for _ in range(6):
        other_at = at + rng.randrange(-4, 5)
        if not 0 <= other_at < len(row):
            continue
        other = row[other_at].action
        if isinstance(other, Overlap) or other.kind == WEIGHT:
            continue
        if (action.kind == FORWARD) == (other.kind == FORWARD):
            continue
        forward, backward = (action, other) if action.kind == FORWARD else (other, action)
        if forward.micro_batch == backward.micro_batch:
            continue  # the backward needs what comes of the forward
        if problem.costs.saved(forward.stage, backward.stage) < EPSILON:
            continue
        gone = {at, other_at}
        if backward.kind == INPUT:
            weight = backward._replace(kind=WEIGHT)
            gone.add(next(i for i, step in enumerate(row) if step.action == weight))
        first, end = min(gone), max(gone) + 1
        pair = Overlap(forward, Compute(backward.stage, BACKWARD, backward.micro_batch))
        return (
            first,
            end,
            [
                pair if i == at else row[i].action
                for i in range(first, end)
                if i == at or i not in gone
            ],
        )
    return None


MOVES: tuple[Move, ...] = (_split_pair, _swap, _shift, _form_pair, _split_backward, _shift_weight)
