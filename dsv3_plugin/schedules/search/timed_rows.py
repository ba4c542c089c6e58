"""Rows of actions with all their times, made so that a changed row is timed quickly.

Only what a change can touch is timed again: actions that started before the first changed one keep
their times, and a trial ends as soon as some rank cannot finish in time.
"""

import random
from bisect import bisect_left
from itertools import accumulate

from dsv3_plugin.schedules.actions import BACKWARD, FORWARD, INPUT, WEIGHT, Action
from dsv3_plugin.schedules.search.problem import EPSILON, Problem


class Step:
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


Row = list[Step]


class TimedRows:
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
        too_late = self.makespan + EPSILON
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

    def with_row(self, rank: int, row: Row) -> "TimedRows":
        """The same with another row on `rank`."""
        rows = [*self.rows]
        rows[rank] = row
        return TimedRows(self.problem, rows)

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
            if self.ends[rank][-1] > self.makespan - EPSILON
        ]
        path = [rng.choice(lasts)]
        while True:
            rank, at = path[-1]
            start = self.starts[rank][at]
            before = [
                home[n] for n in self.rows[rank][at].needs if self.arrival[n] > start - EPSILON
            ]
            if at and self.ends[rank][at - 1] > start - EPSILON:
                before.append((rank, at - 1))
            if start < EPSILON or not before:
                return path
            path.append(rng.choice(before))


def _suffix_sums(row: Row) -> list[float]:
    sums = list(accumulate((step.duration for step in reversed(row)), initial=0.0))
    sums.reverse()
    return sums
