"""A schedule by list scheduling: whenever a rank is free, a policy picks what it does next.

Within a stage, micro-batches go in order. A backward that stands alone is always split, since its
input gradient is wanted elsewhere and its weight gradient by nobody: that one waits for a gap, or
for memory to run short. `policy.py` says how a rank chooses; `search.py` tries many policies.
"""

from collections import deque
from heapq import heappop, heappush
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
from dsv3_plugin.schedules.search.policy import PREFERENCES, Policy
from dsv3_plugin.schedules.search.problem import EPSILON, Problem

_Candidates = list[tuple[tuple[int, ...], int]]  # stages that are ready, after their preference


def list_schedule(problem: Problem, policy: Policy) -> tuple[float, list[list[Action]]] | None:
    """Makespan and rows of a schedule within the limit; None where the policy runs dry."""
    run = _Run(problem, policy)
    while run.events:
        now, number = heappop(run.events)
        rank = run.ranks[number]
        if now >= rank.free - EPSILON:
            action = run.choice(rank, now)
            if action is not None:
                run.start(rank, action, now)
    if not run.finished:
        return None
    return max(rank.free for rank in run.ranks), [rank.row for rank in run.ranks]


class _Stage:
    """How far a stage has come.

    Attributes:
        cap: micro-batches that may be in flight.
        reserve: memory that a forward must leave to later stages of the rank.
        forwards, backwards: micro-batches done, which are the first so many.
        input_at, gradient_at: when a micro-batch's forward, or backward, can start.
    """

    __slots__ = ("backwards", "cap", "forwards", "gradient_at", "input_at", "reserve")

    def __init__(self, micro_batches: int, cap: float, reserve: float):
        self.cap, self.reserve = cap, reserve
        self.forwards = self.backwards = 0
        self.input_at, self.gradient_at = [inf] * micro_batches, [inf] * micro_batches


class _Rank:
    """How far a rank has come.

    Attributes:
        stages: those it holds, along the model.
        pair_after, solo_below: see `Policy`.
        free: when its latest action ends.
        memory: activations it holds.
        pending: weight gradients put off, oldest first.
        last_forward, last_backward: stages of its latest ones.
    """

    __slots__ = (
        "backwards_done",
        "forwards_left",
        "free",
        "last_backward",
        "last_forward",
        "memory",
        "number",
        "pair_after",
        "pending",
        "row",
        "solo_below",
        "stages",
    )

    def __init__(self, number: int, problem: Problem, policy: Policy):
        self.number = number
        self.stages = problem.rank_stages[number]
        self.pair_after = policy.pair_after_on(number, problem.pp)
        self.solo_below = policy.solo_below_on(number, problem.pp)
        self.row: list[Action] = []
        self.free = self.memory = 0.0
        self.pending: deque[Compute] = deque()
        self.forwards_left = problem.micro_batches * len(self.stages)
        self.backwards_done = 0
        self.last_forward = self.last_backward = -1


class _Run:
    """One pass of list scheduling.

    Attributes:
        events: heap of (time, rank): when a rank may have something to do.
    """

    def __init__(self, problem: Problem, policy: Policy):
        self.problem, self.policy, self.costs = problem, policy, problem.costs
        self.first_forward, self.first_backward = (
            PREFERENCES[policy.forward],
            PREFERENCES[policy.backward],
        )
        self.hops = (*problem.hops, 0.0)
        self.ranks = [_Rank(number, problem, policy) for number in range(problem.pp)]
        self.stages = [self._stage(number) for number in range(problem.costs.num_stages)]
        self.stages[0].input_at = [0.0] * problem.micro_batches
        self.events = [(0.0, number) for number in range(problem.pp)]

    def _stage(self, number: int) -> _Stage:
        rank = self.problem.stage_ranks[number]
        first, *_ = stages = self.ranks[rank].stages
        later = sum(self.costs.activation[stage] for stage in stages if stage > number)
        cap = self.policy.cap_on(rank) if number == first else inf
        return _Stage(self.problem.micro_batches, cap, self.policy.reserve * later)

    @property
    def finished(self) -> bool:
        """Whether everything was computed."""
        count = self.problem.micro_batches
        return all(stage.backwards == count for stage in self.stages) and not any(
            rank.pending for rank in self.ranks
        )

    def choice(self, rank: _Rank, now: float) -> Action | None:
        """What a free rank starts; None where it waits for what comes."""
        policy = self.policy
        forwards, next_forward, short_of_memory = self._ready_forwards(rank, now)
        backwards, next_backward = self._ready_backwards(rank, now)
        forward = min(forwards)[1] if forwards else None
        backward = min(backwards)[1] if backwards else None
        at_end = rank.forwards_left <= rank.solo_below
        may_pair = rank.backwards_done >= rank.pair_after and not at_end

        if forward is not None and backward is not None:
            if may_pair:
                pair = self._pair(forward, backward, forwards, backwards)
                if pair is not None:
                    return pair
            backward_first = not policy.forward_first_at_end if at_end else policy.backward_first
            if backward_first:
                forward = None
            else:
                backward = None
        elif may_pair and (forward is not None or backward is not None):
            other = next_backward if backward is None else next_forward
            if other <= now + EPSILON + policy.wait:
                heappush(self.events, (other, rank.number))
                return None

        if policy.weight_for_memory and short_of_memory and rank.pending:
            return rank.pending[0]
        if backward is not None:
            return Compute(backward, INPUT, self.stages[backward].backwards)
        if forward is not None:
            return Compute(forward, FORWARD, self.stages[forward].forwards)
        if rank.pending:
            weight = rank.pending[0]
            end = now + self.costs.weight[weight.stage]
            if end <= min(next_forward, next_backward) + policy.weight_slack + EPSILON:
                return weight
        return None

    def _ready_forwards(self, rank: _Rank, now: float) -> tuple[_Candidates, float, bool]:
        """Stages with a forward to start, when the next comes, and whether one lacks memory."""
        count, soon = self.problem.micro_batches, now + EPSILON
        limit = self.problem.limit + EPSILON
        ready, following, short_of_memory = [], inf, False
        for number in rank.stages:
            stage = self.stages[number]
            m = stage.forwards
            if m == count or m - stage.backwards >= stage.cap:
                continue
            at = stage.input_at[m]
            if rank.memory + self.costs.activation[number] + stage.reserve > limit:
                short_of_memory |= at <= soon
            elif at <= soon:
                ready.append((self.first_forward(number, m, rank.last_forward), number))
            elif at < following:
                following = at
        return ready, following, short_of_memory

    def _ready_backwards(self, rank: _Rank, now: float) -> tuple[_Candidates, float]:
        """Stages with a backward to start, and when the next comes."""
        soon = now + EPSILON
        ready, following = [], inf
        for number in rank.stages:
            stage = self.stages[number]
            m = stage.backwards
            if m == stage.forwards:
                continue
            at = stage.gradient_at[m]
            if at <= soon:
                ready.append((self.first_backward(number, m, rank.last_backward), number))
            elif at < following:
                following = at
        return ready, following

    def _pair(
        self, forward: int, backward: int, forwards: _Candidates, backwards: _Candidates
    ) -> Overlap | None:
        """The pair to form of stages that are ready; None where it would save nothing.

        forward, backward: the stages that come first, each for itself.
        """
        first = (forward, backward)
        pair, saved = first, self.costs.saved(*first)
        if self.policy.best_pairs and len(forwards) + len(backwards) > 2:
            pairs = [(f, b) for _, f in forwards for _, b in backwards]
            pair = max(pairs, key=lambda one: (self.costs.saved(*one), one == first))
            saved = self.costs.saved(*pair)
        if saved <= EPSILON:
            return None
        forward, backward = pair
        return Overlap(
            Compute(forward, FORWARD, self.stages[forward].forwards),
            Compute(backward, BACKWARD, self.stages[backward].backwards),
        )

    def start(self, rank: _Rank, action: Action, now: float) -> None:
        """Let a rank run an action, and tell those who wait for what it gives."""
        end = now + self.costs.duration(action)
        rank.row.append(action)
        rank.free = end
        heappush(self.events, (end, rank.number))
        for part in action.parts:
            if part.kind == FORWARD:
                self._after_forward(rank, part, end)
            elif part.kind == WEIGHT:
                rank.pending.popleft()
                rank.memory -= self.costs.activation[part.stage]
            else:
                self._after_backward(rank, part, end)

    def _after_forward(self, rank: _Rank, part: Compute, end: float) -> None:
        number, _, micro_batch = part
        self.stages[number].forwards += 1
        rank.forwards_left -= 1
        rank.last_forward = number
        rank.memory += self.costs.activation[number]
        if number + 1 == len(self.stages):
            self.stages[number].gradient_at[micro_batch] = end
        else:
            there = end + self.hops[number]
            self.stages[number + 1].input_at[micro_batch] = there
            heappush(self.events, (there, self.problem.stage_ranks[number + 1]))

    def _after_backward(self, rank: _Rank, part: Compute, end: float) -> None:
        number, kind, micro_batch = part
        self.stages[number].backwards += 1
        rank.backwards_done += 1
        rank.last_backward = number
        if kind == INPUT:
            rank.pending.append(Compute(number, WEIGHT, micro_batch))
        else:
            rank.memory -= self.costs.activation[number]
        if number > 0:
            there = end + self.hops[number - 1]
            self.stages[number - 1].gradient_at[micro_batch] = there
            heappush(self.events, (there, self.problem.stage_ranks[number - 1]))
