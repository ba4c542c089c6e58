"""How a rank chooses what it does next in list scheduling: a few numbers, drawn at random."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from dsv3_plugin.schedules.search.problem import Problem

Choice = Literal["deep", "shallow", "old, deep", "old, shallow", "alternate"]

# By choice: what to take first of several stages that are ready, the least of these. Arguments:
# stage, micro-batch that is ready there, stage of the rank's latest computation of the kind.
PREFERENCES: dict[Choice, Callable[[int, int, int], tuple[int, ...]]] = {
    "deep": lambda stage, micro_batch, latest: (-stage,),
    "shallow": lambda stage, micro_batch, latest: (stage,),
    "old, deep": lambda stage, micro_batch, latest: (micro_batch, -stage),
    "old, shallow": lambda stage, micro_batch, latest: (micro_batch, stage),
    "alternate": lambda stage, micro_batch, latest: (stage == latest,),
}


@dataclass(frozen=True)
class Policy:
    """How rank r of P chooses. `near` terms count with r, `far` terms with P-1-r.

    Order:
        forward, backward: which stage first when several are ready ("deep": the later stage;
            "old": the lower micro-batch; "alternate": another than last time).
        backward_first, forward_first_at_end: which of the two when both are ready and do not pair;
            the end is where `solo_below` begins.
    Pairs:
        pair_after*: backwards that a rank does alone before it forms pairs: early gradients travel
            sooner that way.
        solo_below*: forwards left at which it stops forming pairs, for the same reason at the end.
        best_pairs: of the pairs that are ready, form the one that saves most.
        wait: time a rank stays idle for the other half of a pair.
    Memory:
        cap*: micro-batches that a rank's first stage may have in flight.
        reserve: free room, in activations of each later stage of the rank, that a forward must
            leave.
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

    def pair_after_on(self, rank: int, pp: int) -> float:
        """Backwards that a rank does alone before it forms pairs."""
        return self.pair_after + self.pair_after_near * rank + self.pair_after_far * (pp - 1 - rank)

    def solo_below_on(self, rank: int, pp: int) -> float:
        """Forwards left at which a rank stops forming pairs."""
        return self.solo_below + self.solo_below_near * rank + self.solo_below_far * (pp - 1 - rank)

    def cap_on(self, rank: int) -> float:
        """Micro-batches that the first stage of a rank may have in flight."""
        return self.cap + self.cap_near * rank


def random_policy(problem: Problem, rng: random.Random) -> Policy:
    """A policy drawn at random."""
    return Policy(**{field: draw(problem, rng) for field, draw in _DRAWS.items()})


def mutated(policy: Policy, problem: Problem, rng: random.Random) -> Policy:
    """The policy with about one in seven of its numbers drawn anew, and at least one."""
    chosen = [field for field in _DRAWS if rng.random() < 0.15] or [rng.choice(list(_DRAWS))]
    return replace(policy, **{field: _DRAWS[field](problem, rng) for field in chosen})


def _choice(problem: Problem, rng: random.Random) -> Choice:
    return rng.choice(list(PREFERENCES))


def _slope(problem: Problem, rng: random.Random) -> float:
    """Of a number that changes along the ranks, per rank."""
    return _mostly_zero(rng, rng.randrange(-3, 5) / 4)


def _mostly_zero(rng: random.Random, value: float) -> float:
    return 0.0 if rng.random() < 0.5 else value


def _stage_time(problem: Problem) -> float:
    """A typical forward, the natural unit of waiting."""
    return sum(problem.costs.forward) / len(problem.costs.forward)


# In a fixed order: a seed gives one policy.
_DRAWS: dict[str, Callable[[Problem, random.Random], object]] = {
    "forward": _choice,
    "backward": _choice,
    "pair_after": lambda p, rng: _mostly_zero(rng, rng.randrange(2 * p.pp + 1) - p.pp // 2),
    "pair_after_near": _slope,
    "pair_after_far": _slope,
    "solo_below": lambda p, rng: _mostly_zero(rng, rng.randrange(p.pp + 1)),
    "solo_below_near": _slope,
    "solo_below_far": _slope,
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
