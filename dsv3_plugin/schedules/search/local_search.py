"""Local search on the order of each rank, along the critical path.

The makespan is the length of a longest chain of actions, each started by the end of the one before.
Only a change on that chain can shorten it, so a move picks an action there and swaps it, shifts it,
splits a pair, forms one, or puts a weight gradient elsewhere. A move stays if neither the makespan
grows nor, at equal makespan, the ranks finish later (sum of squares of their ends): moves along
that plateau are what leads out of it.

Only what a move can touch is timed again: actions that started before the first changed one keep
their times, and a trial ends as soon as some rank cannot finish in time.
"""

import random
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import inf

from dsv3_plugin.schedules.actions import (
    BACKWARD,
    FORWARD,
    INPUT,
    WEIGHT,
    Action,
    Compute,
    Overlap,
)
from dsv3_plugin.schedules.search.list_scheduling import Problem

_EPSILON = 1e-9


class _Step:
    """An action as the timing loop wants it: numbers only."""

    __slots__ = ("action", "duration", "gives", "needs", "release", "take")

    def __init__(self, action: Action, problem: Problem):
        costs, count = problem.costs, problem.micro_batches
        last = costs.num_stages - 1
        hops = (*problem.hops, 0.0)
        self.action = action
        self.duration = costs.duration(action)
        self.take = self.release = 0.0
        needs, gives = [], []  # result numbers; (result number, time of travel)
        gradients = costs.num_stages * count
        for stage, kind, m in action.parts:
            at = stage * count + m
            if kind == FORWARD:
                self.take += costs.activation[stage]
                if stage > 0:
                    needs.append(at - count)
                gives.append((at, hops[stage]))
            if kind in (INPUT, BACKWARD):
                if stage < last:
                    needs.append(gradients + at + count)
                gives.append((gradients + at, hops[stage - 1] if stage else 0.0))
            if kind in (WEIGHT, BACKWARD):
                self.release += costs.activation[stage]
        self.needs = tuple(needs)
        self.gives = tuple(gives)


Row = list[_Step]


class _Timed:
    """Rows with all their times, from which a changed row can be timed quickly."""

    def __init__(self, problem: Problem, rows: list[Row]):
        self.problem, self.rows = problem, rows
        size = 2 * problem.costs.num_stages * problem.micro_batches
        self.arrival = [0.0] * size
        self.produced = [0.0] * size  # when the action that gives a result started
        self.starts: list[list[float]] = [[] for _ in rows]
        self.ends: list[list[float]] = [[] for _ in rows]
        position = [0] * len(rows)
        clock = [0.0] * len(rows)
        known = [False] * size
        waiting: dict[int, int] = {}
        runnable = list(range(len(rows)))
        while runnable:
            rank = runnable.pop()
            row, now = rows[rank], clock[rank]
            while position[rank] < len(row):
                step = row[position[rank]]
                missing = next((need for need in step.needs if not known[need]), None)
                if missing is not None:
                    waiting[missing] = rank
                    break
                start = max([now, *(self.arrival[need] for need in step.needs)])
                now = start + step.duration
                self.starts[rank].append(start)
                self.ends[rank].append(now)
                position[rank] += 1
                for given, travel in step.gives:
                    known[given] = True
                    self.arrival[given], self.produced[given] = now + travel, start
                    if given in waiting:
                        runnable.append(waiting.pop(given))
            clock[rank] = now
        self.makespan = max(clock)
        self.spread = sum(end * end for end in clock)
        # Work left on a rank from each position on, and memory held before each position.
        self.left = [_suffix_sums(row) for row in rows]
        self.held = [
            list(accumulate((s.take - s.release for s in row), initial=0.0)) for row in rows
        ]

    def trial(self, rank: int, row: Row, first: int) -> tuple[float, float] | None:
        """(makespan, spread) with `row` on `rank`, the same as now before `first`.

        None where it deadlocks or is certainly longer than now.
        """
        rows, starts, ends = self.rows, self.starts, self.ends
        since = ends[rank][first - 1] if first else 0.0
        too_late = self.makespan + _EPSILON
        left = [*self.left]
        left[rank] = _suffix_sums(row)
        pp = len(rows)
        position = [bisect_left(begun, since) for begun in starts]  # on `rank`, at most `first`
        clock = [ends[r][at - 1] if at else 0.0 for r, at in enumerate(position)]
        base, produced = self.arrival, self.produced
        fresh: list[float | None] = [None] * len(base)
        waiting: dict[int, int] = {}
        runnable = list(range(pp))
        unfinished = pp
        while runnable:
            r = runnable.pop()
            current = row if r == rank else rows[r]
            remaining = left[r]
            at, now, size = position[r], clock[r], len(current)
            while at < size:
                step = current[at]
                start = now
                for need in step.needs:
                    there = fresh[need]
                    if there is None:
                        if produced[need] >= since:
                            waiting[need] = r
                            break
                        there = base[need]
                    if there > start:
                        start = there
                else:
                    if start + remaining[at] > too_late:
                        return None
                    now = start + step.duration
                    at += 1
                    for given, travel in step.gives:
                        fresh[given] = now + travel
                        if given in waiting:
                            runnable.append(waiting.pop(given))
                    continue
                break
            else:
                unfinished -= 1
            position[r], clock[r] = at, now
        if unfinished:
            return None
        return max(clock), sum(end * end for end in clock)

    def with_row(self, rank: int, row: Row) -> "_Timed":
        """The same with another row on `rank`."""
        rows = [*self.rows]
        rows[rank] = row
        return _Timed(self.problem, rows)

    def critical_path(self, rng: random.Random) -> list[tuple[int, int]]:
        """(rank, position) along one longest chain, last action first."""
        home = {
            given: (rank, at)
            for rank, row in enumerate(self.rows)
            for at, step in enumerate(row)
            for given, _ in step.gives
        }
        lasts = [
            (rank, len(row) - 1)
            for rank, row in enumerate(self.rows)
            if self.ends[rank][-1] > self.makespan - _EPSILON
        ]
        path = [rng.choice(lasts)]
        while True:
            rank, at = path[-1]
            start = self.starts[rank][at]
            before = [
                home[n] for n in self.rows[rank][at].needs if self.arrival[n] > start - _EPSILON
            ]
            if at and self.ends[rank][at - 1] > start - _EPSILON:
                before.append((rank, at - 1))
            if start < _EPSILON or not before:
                return path
            path.append(rng.choice(before))


def _suffix_sums(row: Row) -> list[float]:
    sums = list(accumulate((step.duration for step in reversed(row)), initial=0.0))
    sums.reverse()
    return sums


def improve(
    problem: Problem, rows: Sequence[Sequence[Action]], rng: random.Random, effort: int, goal: float
) -> list[list[Action]]:
    """Rows at least as good, after `effort` actions' worth of timing, or once at `goal`.

    goal: a makespan that cannot be beaten (the lower bound).
    """
    steps: dict[Action, _Step] = {}

    def step(action: Action) -> _Step:
        if action not in steps:
            steps[action] = _Step(action, problem)
        return steps[action]

    timed = _Timed(problem, [[step(action) for action in row] for row in rows])
    path = timed.critical_path(rng)
    size = sum(len(row) for row in rows)
    while effort > 0 and timed.makespan > goal + _EPSILON:
        effort -= _PRICE_OF_A_MOVE
        rank, at = rng.choice(path)
        if rng.random() < _OFF_THE_PATH:
            rank = rng.randrange(len(timed.rows))
            at = rng.randrange(len(timed.rows[rank]))
        row = timed.rows[rank]
        window = _MOVES[rng.randrange(len(_MOVES))](row, at, problem, rng)
        if window is None:
            continue
        first, end, actions = window
        changed = [step(action) for action in actions]
        if not _lawful(changed, timed.held[rank][first], problem.limit):
            continue
        changed_row = [*row[:first], *changed, *row[end:]]
        effort -= size // 4  # what a trial times on average, being partial and often cut short
        found = timed.trial(rank, changed_row, first)
        if found is not None and found <= (timed.makespan + _EPSILON, timed.spread):
            timed = timed.with_row(rank, changed_row)
            path = timed.critical_path(rng)
            effort -= 2 * size
    return [[s.action for s in row] for row in timed.rows]


def fuse_backwards(problem: Problem, rows: Sequence[Sequence[Action]]) -> list[list[Action]]:
    """Rows with I and W that follow each other made one B wherever nobody waits for it.

    A whole backward is cheaper than its two parts on real hardware.
    """
    timed = _Timed(problem, [[_Step(action, problem) for action in row] for row in rows])
    used_at = {
        need: start
        for row, starts in zip(timed.rows, timed.starts, strict=True)
        for step, start in zip(row, starts, strict=True)
        for need in step.needs
    }
    fused: list[list[Action]] = []
    for row in timed.rows:
        out: list[Action] = []
        for step in row:
            before = out[-1] if out else None
            is_rest = isinstance(before, Compute) and step.action == before._replace(kind=WEIGHT)
            if is_rest and before.kind == INPUT:
                (given, _), *_ = _Step(before, problem).gives
                if timed.arrival[given] + step.duration <= used_at.get(given, inf) + _EPSILON:
                    out[-1] = before._replace(kind=BACKWARD)
                    continue
            out.append(step.action)
        fused.append(out)
    return fused


_PRICE_OF_A_MOVE = 10  # drawing it and checking the memory, in actions timed
_OFF_THE_PATH = 0.15

# A move is a window of a row and what to put there: (first, end, actions for [first, end)).
_Window = tuple[int, int, list[Action]]


def _lawful(changed: list[_Step], held: float, limit: float) -> bool:
    """Whether a window keeps to the memory limit, and F, then I or B, then W of every micro-batch.

    held: activations on the rank before the window.
    """
    latest: dict[tuple[int, int], int] = {}
    for step in changed:
        held += step.take
        if held > limit + _EPSILON:
            return False
        held -= step.release
        for stage, kind, micro_batch in step.action.parts:
            key, phase = (stage, micro_batch), "FBIW".index(kind)
            if latest.get(key, -1) >= phase:
                return False
            latest[key] = phase
    return True


def _swap(row: Row, at: int, problem: Problem, rng: random.Random) -> _Window | None:
    """Exchange with the action after or before."""
    first = at if rng.random() < 0.5 else at - 1
    if first < 0 or first + 2 > len(row):
        return None
    return first, first + 2, [row[first + 1].action, row[first].action]


def _shift(row: Row, at: int, problem: Problem, rng: random.Random) -> _Window | None:
    """Move by up to six places."""
    return _moved_to(row, at, at + rng.choice((-6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6)))


def _shift_weight(row: Row, at: int, problem: Problem, rng: random.Random) -> _Window | None:
    """Move a weight gradient anywhere on the rank by up to eight places."""
    for _ in range(10):
        at = rng.randrange(len(row))
        if row[at].action.parts[0].kind == WEIGHT:
            return _moved_to(row, at, at + rng.randrange(-8, 9))
    return None


def _moved_to(row: Row, at: int, to: int) -> _Window | None:
    if not 0 <= to < len(row) or to == at:
        return None
    action = row[at].action
    if to > at:
        return at, to + 1, [*(step.action for step in row[at + 1 : to + 1]), action]
    return to, at + 1, [action, *(step.action for step in row[to:at])]


def _split_pair(row: Row, at: int, problem: Problem, rng: random.Random) -> _Window | None:
    """Take a pair apart, its weight gradient put off by up to eight places."""
    action = row[at].action
    if not isinstance(action, Overlap):
        return None
    backward = action.backward
    input_, weight = backward._replace(kind=INPUT), backward._replace(kind=WEIGHT)
    halves = [action.forward, input_] if rng.random() < 2 / 3 else [input_, action.forward]
    end = min(len(row), at + 1 + (rng.randrange(9) if rng.random() < 0.5 else 0))
    return at, end, [*halves, *(step.action for step in row[at + 1 : end]), weight]


def _split_backward(row: Row, at: int, problem: Problem, rng: random.Random) -> _Window | None:
    """Split a full backward, its weight gradient put off by up to nine places."""
    action = row[at].action
    if isinstance(action, Overlap) or action.kind != BACKWARD:
        return None
    end = min(len(row), at + 1 + rng.randrange(10))
    between = (step.action for step in row[at + 1 : end])
    return at, end, [action._replace(kind=INPUT), *between, action._replace(kind=WEIGHT)]


def _form_pair(row: Row, at: int, problem: Problem, rng: random.Random) -> _Window | None:
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
        if problem.costs.saved(forward.stage, backward.stage) < _EPSILON:
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


_MOVES = (_split_pair, _swap, _shift, _form_pair, _split_backward, _shift_weight)
