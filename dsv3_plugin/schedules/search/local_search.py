"""Local search on the order of each rank, along the critical path.

The makespan is the length of a longest chain of actions, each started by the end of the one before.
Only a change on that chain can shorten it, so a move picks an action there and swaps it, shifts it,
splits a pair, forms one, or puts a weight gradient elsewhere. A move stays if neither the makespan
grows nor, at equal makespan, the ranks finish later (sum of squares of their ends): moves along
that plateau are what leads out of it.
"""

import random
from collections.abc import Sequence
from math import inf

from dsv3_plugin.schedules.actions import BACKWARD, INPUT, WEIGHT, Action, Compute
from dsv3_plugin.schedules.search.moves import MOVES
from dsv3_plugin.schedules.search.problem import EPSILON, Problem
from dsv3_plugin.schedules.search.timed_rows import Step, TimedRows

_PRICE_OF_A_MOVE = 10  # drawing it and checking the memory, in actions timed
_OFF_THE_PATH = 0.15  # share of the moves that are made anywhere


def improve(
    problem: Problem, rows: Sequence[Sequence[Action]], rng: random.Random, effort: int, goal: float
) -> list[list[Action]]:
    """Rows at least as good, after `effort` actions' worth of timing, or once at `goal`.

    goal: a makespan that cannot be beaten (the lower bound).
    """
    steps: dict[Action, Step] = {}

    def step(action: Action) -> Step:
        if action not in steps:
            steps[action] = Step(action, problem)
        return steps[action]

    timed = TimedRows(problem, [[step(action) for action in row] for row in rows])
    path = timed.critical_path(rng)
    size = sum(len(row) for row in rows)
    while effort > 0 and timed.makespan > goal + EPSILON:
        effort -= _PRICE_OF_A_MOVE
        rank, at = rng.choice(path)
        if rng.random() < _OFF_THE_PATH:
            rank = rng.randrange(len(timed.rows))
            at = rng.randrange(len(timed.rows[rank]))
        row = timed.rows[rank]
        window = MOVES[rng.randrange(len(MOVES))](row, at, problem, rng)
        if window is None:
            continue
        first, end, actions = window
        changed = [step(action) for action in actions]
        if not _keeps_the_rules(changed, timed.held[rank][first], problem.limit):
            continue
        changed_row = [*row[:first], *changed, *row[end:]]
        effort -= size // 4  # what a trial times on average, being partial and often cut short
        found = timed.trial(rank, changed_row, first)
        if found is not None and found <= (timed.makespan + EPSILON, timed.spread):
            timed = timed.with_row(rank, changed_row)
            path = timed.critical_path(rng)
            effort -= 2 * size
    return [[s.action for s in row] for row in timed.rows]


def fuse_backwards(problem: Problem, rows: Sequence[Sequence[Action]]) -> list[list[Action]]:
    """Rows with I and W that follow each other made one B wherever nobody waits for it.

    A whole backward is cheaper than its two parts on real hardware.
    """
    timed = TimedRows(problem, [[Step(action, problem) for action in row] for row in rows])
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
                (given, _), *_ = Step(before, problem).gives
                if timed.arrival[given] + step.duration <= used_at.get(given, inf) + EPSILON:
                    out[-1] = before._replace(kind=BACKWARD)
                    continue
            out.append(step.action)
        fused.append(out)
    return fused


def _keeps_the_rules(changed: list[Step], held: float, limit: float) -> bool:
    """Whether a window keeps to the memory limit, and F, then I or B, then W of every micro-batch.

    held: activations on the rank before the window.
    """
    latest: dict[tuple[int, int], int] = {}
    for step in changed:
        held += step.take
        if held > limit + EPSILON:
            return False
        held -= step.release
        for stage, kind, micro_batch in step.action.parts:
            key, phase = (stage, micro_batch), "FBIW".index(kind)
            if latest.get(key, -1) >= phase:
                return False
            latest[key] = phase
    return True
