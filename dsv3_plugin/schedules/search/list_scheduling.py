"""A schedule by list scheduling: whenever a rank is free, a policy picks what it does next.

Within a stage, micro-batches go in order. A backward that stands alone is always split, since its
input gradient is wanted elsewhere and its weight gradient by nobody: that one waits for a gap, or
for memory to run short. One policy is a handful of numbers; `search.py` tries many.
"""

import random
from collections import deque
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import pairwise
from math import inf
from typing import Literal

from dsv3_plugin.schedules.actions import (
    BACKWARD,
    FORWARD,
    INPUT,
    WEIGHT,
    Action,
    Compute,
    Overlap,
)
from dsv3_plugin.schedules.costs import StageCosts

_EPSILON = 1e-9


@dataclass(frozen=True)
class Problem:
    """What to schedule.

    stage_ranks: the rank of each stage, along the model.
    limit: the most activations a rank may hold, in P-ths of the model on one micro-batch.
    """

    stage_ranks: tuple[int, ...]
    micro_batches: int
    costs: StageCosts
    limit: float

    @property
    def pp(self) -> int:
        return max(self.stage_ranks) + 1

    @property
    def rank_stages(self) -> tuple[tuple[int, ...], ...]:
        """The stages of each rank, along the model."""
        return tuple(
            tuple(stage for stage, holder in enumerate(self.stage_ranks) if holder == rank)
            for rank in range(self.pp)
        )

    @property
    def hops(self) -> tuple[float, ...]:
        """Time from stage s to stage s + 1, for s = 0 .. S-2; nothing where both are one rank's."""
        hop = self.costs.latency + self.costs.occupancy
        return tuple(0.0 if a == b else hop for a, b in pairwise(self.stage_ranks))


Choice = Literal["deep", "shallow", "old, deep", "old, shallow", "alternate"]
_CHOICES: tuple[Choice, ...] = ("deep", "shallow", "old, deep", "old, shallow", "alternate")


@dataclass(frozen=True)
class Policy:
    """How a rank r of P chooses. `near` terms count with r, `far` terms with P-1-r.

    forward, backward: which stage first when several are ready ("deep": the later stage; "old":
        the lower micro-batch).
    pair_after*: backwards that a rank does alone before it forms pairs: early gradients travel
        sooner that way.
    solo_below*: forwards left at which it stops forming pairs, for the same reason at the end.
    best_pairs: of the pairs that are ready, form the one that saves most.
    wait: time a rank stays idle for the other half of a pair.
    backward_first, forward_first_at_end: which of the two when both are ready and do not pair.
    cap*: micro-batches that a rank's first stage may have in flight.
    reserve: free room, in activations of each later stage of the rank, that a forward must leave.
    weight_slack: a weight gradient may delay work known to come, by this long.
    weight_for_memory: run a weight gradient at once where a ready forward lacks only memory.
    """

    forward: Choice = "old, shallow"
    backward: Choice = "old, shallow"
    pair_after: float = 0.0
    pair_after_near: float = 0.0
    pair_after_far: float = 0.0
    solo_below: float = 0.0
    solo_below_near: float = 0.0
    solo_below_far: float = 0.0
    best_pairs: bool = True
    wait: float = 0.0
    backward_first: bool = True
    forward_first_at_end: bool = True
    cap: float = inf
    cap_near: float = 0.0
    reserve: float = 1.0
    weight_slack: float = 0.0
    weight_for_memory: bool = False


def random_policy(problem: Problem, rng: random.Random) -> Policy:
    """A policy drawn at random."""
    policy = Policy()
    for field in _DRAWS:
        policy = replace(policy, **{field: _DRAWS[field](problem, rng)})
    return policy


def mutated(policy: Policy, problem: Problem, rng: random.Random) -> Policy:
    """The policy with about one in seven of its numbers drawn anew, and at least one."""
    chosen = [field for field in _DRAWS if rng.random() < 0.15] or [rng.choice(list(_DRAWS))]
    return replace(policy, **{field: _DRAWS[field](problem, rng) for field in chosen})


def _mostly_zero(rng: random.Random, value: float) -> float:
    return 0.0 if rng.random() < 0.5 else value


def _stage_time(problem: Problem) -> float:
    """A typical forward, the natural unit of waiting."""
    return sum(problem.costs.forward) / len(problem.costs.forward)


_DRAWS = {
    "forward": lambda problem, rng: rng.choice(_CHOICES),
    "backward": lambda problem, rng: rng.choice(_CHOICES),
    "pair_after": lambda p, rng: _mostly_zero(rng, rng.randrange(2 * p.pp + 1) - p.pp // 2),
    "pair_after_near": lambda p, rng: _mostly_zero(rng, rng.randrange(-3, 5) / 4),
    "pair_after_far": lambda p, rng: _mostly_zero(rng, rng.randrange(-3, 5) / 4),
    "solo_below": lambda p, rng: _mostly_zero(rng, rng.randrange(p.pp + 1)),
    "solo_below_near": lambda p, rng: _mostly_zero(rng, rng.randrange(-3, 5) / 4),
    "solo_below_far": lambda p, rng: _mostly_zero(rng, rng.randrange(-3, 5) / 4),
    "best_pairs": lambda p, rng: rng.random() < 0.5,
    "wait": lambda p, rng: _mostly_zero(rng, rng.randrange(12) / 4 * _stage_time(p)),
    "backward_first": lambda p, rng: rng.random() < 0.5,
    "forward_first_at_end": lambda p, rng: rng.random() < 0.7,
    "cap": lambda p, rng: inf if rng.random() < 0.4 else 2 * p.pp + 1 - rng.randrange(6),
    "cap_near": lambda p, rng: 0.0 if rng.random() < 0.4 else -rng.randrange(5) / 2,
    "reserve": lambda p, rng: rng.choice((0, 1, 1, 1, 2, 3, p.pp // 2)),
    "weight_slack": lambda p, rng: _mostly_zero(rng, rng.randrange(5) / 4 * _stage_time(p)),
    "weight_for_memory": lambda p, rng: rng.random() < 0.3,
}


def list_schedule(problem: Problem, policy: Policy) -> tuple[float, list[list[Action]]] | None:
    """Makespan and rows of a schedule within the limit; None where the policy runs dry."""
    costs, count = problem.costs, problem.micro_batches
    pp, num_stages = problem.pp, costs.num_stages
    stage_ranks, hops = problem.stage_ranks, (*problem.hops, 0.0)
    activation, hidden = costs.activation, costs.hidden
    last = num_stages - 1
    ranks = range(pp)
    rank_stages = problem.rank_stages
    later_room = {
        stage: policy.reserve * sum(activation[s] for s in stages if s > stage)
        for stages in rank_stages
        for stage in stages
    }
    cap = {stages[0]: policy.cap + policy.cap_near * r for r, stages in enumerate(rank_stages)}
    pair_after = [
        policy.pair_after + policy.pair_after_near * r + policy.pair_after_far * (pp - 1 - r)
        for r in ranks
    ]
    solo_below = [
        policy.solo_below + policy.solo_below_near * r + policy.solo_below_far * (pp - 1 - r)
        for r in ranks
    ]

    forwards, backwards = [0] * num_stages, [0] * num_stages  # done, by stage
    input_at = [[inf] * count for _ in range(num_stages)]  # when a forward's input is there
    gradient_at = [[inf] * count for _ in range(num_stages)]  # when a backward's is
    input_at[0] = [0.0] * count
    pending: list[deque[Compute]] = [deque() for _ in ranks]  # weight gradients put off
    rows: list[list[Action]] = [[] for _ in ranks]
    free, memory = [0.0] * pp, [0.0] * pp
    forwards_left = [count * len(stages) for stages in rank_stages]
    backwards_done = [0] * pp
    last_forward, last_backward = [-1] * pp, [-1] * pp

    def preference(choice: Choice, stage: int, micro_batch: int, latest: int) -> tuple:
        if choice == "deep":
            return (-stage,)
        if choice == "shallow":
            return (stage,)
        if choice == "old, deep":
            return (micro_batch, -stage)
        if choice == "old, shallow":
            return (micro_batch, stage)
        return (stage == latest,)

    events = [(0.0, rank) for rank in ranks]
    heapify(events)

    def run(rank: int, action: Action, now: float) -> None:
        end = now + costs.duration(action)
        rows[rank].append(action)
        free[rank] = end
        heappush(events, (end, rank))
        for stage, kind, micro_batch in action.parts:
            if kind == FORWARD:
                forwards[stage] += 1
                forwards_left[rank] -= 1
                last_forward[rank] = stage
                memory[rank] += activation[stage]
                if stage < last:
                    input_at[stage + 1][micro_batch] = there = end + hops[stage]
                    heappush(events, (there, stage_ranks[stage + 1]))
                else:
                    gradient_at[stage][micro_batch] = end
            elif kind == WEIGHT:
                memory[rank] -= activation[stage]
            else:
                backwards[stage] += 1
                backwards_done[rank] += 1
                last_backward[rank] = stage
                if kind == INPUT:
                    pending[rank].append(Compute(stage, WEIGHT, micro_batch))
                else:
                    memory[rank] -= activation[stage]
                if stage > 0:
                    gradient_at[stage - 1][micro_batch] = there = end + hops[stage - 1]
                    heappush(events, (there, stage_ranks[stage - 1]))

    while events:
        now, rank = heappop(events)
        if now < free[rank] - _EPSILON:
            continue
        soon = now + _EPSILON
        ready_forwards: list[tuple[tuple, int]] = []
        ready_backwards: list[tuple[tuple, int]] = []
        next_forward = next_backward = inf
        short_of_memory = False
        for stage in rank_stages[rank]:
            m = forwards[stage]
            if m < count:
                at = input_at[stage][m]
                if m - backwards[stage] >= cap.get(stage, inf):
                    pass
                elif (
                    memory[rank] + activation[stage] + later_room[stage] > problem.limit + _EPSILON
                ):
                    short_of_memory |= at <= soon
                elif at <= soon:
                    ready_forwards.append(
                        (preference(policy.forward, stage, m, last_forward[rank]), stage)
                    )
                else:
                    next_forward = min(next_forward, at)
            m = backwards[stage]
            if m < forwards[stage]:
                at = gradient_at[stage][m]
                if at <= soon:
                    ready_backwards.append(
                        (preference(policy.backward, stage, m, last_backward[rank]), stage)
                    )
                else:
                    next_backward = min(next_backward, at)
        forward = min(ready_forwards)[1] if ready_forwards else None
        backward = min(ready_backwards)[1] if ready_backwards else None
        at_end = forwards_left[rank] <= solo_below[rank]
        may_pair = backwards_done[rank] >= pair_after[rank] and not at_end

        if forward is not None and backward is not None:
            pair = (forward, backward)
            if may_pair and policy.best_pairs:
                pair = max(
                    ((f, b) for _, f in ready_forwards for _, b in ready_backwards),
                    key=lambda fb: (min(hidden[fb[0]], hidden[fb[1]]), fb == (forward, backward)),
                )
            if may_pair and min(hidden[pair[0]], hidden[pair[1]]) > _EPSILON:
                f, b = pair
                run(
                    rank,
                    Overlap(Compute(f, FORWARD, forwards[f]), Compute(b, BACKWARD, backwards[b])),
                    now,
                )
                continue
            backward_first = not policy.forward_first_at_end if at_end else policy.backward_first
            if backward_first:
                forward = None
            else:
                backward = None
        elif backward is not None and may_pair and next_forward <= soon + policy.wait:
            heappush(events, (next_forward, rank))
            continue
        elif forward is not None and may_pair and next_backward <= soon + policy.wait:
            heappush(events, (next_backward, rank))
            continue

        if policy.weight_for_memory and short_of_memory and pending[rank]:
            run(rank, pending[rank].popleft(), now)
        elif backward is not None:
            run(rank, Compute(backward, INPUT, backwards[backward]), now)
        elif forward is not None:
            run(rank, Compute(forward, FORWARD, forwards[forward]), now)
        elif pending[rank]:
            weight = pending[rank][0]
            end = now + costs.weight[weight.stage]
            if end <= min(next_forward, next_backward) + policy.weight_slack + _EPSILON:
                run(rank, pending[rank].popleft(), now)

    finished = all(done == count for done in backwards) and not any(pending)
    return (max(free), rows) if finished else None
