"""A makespan that no schedule of a problem can beat, so that a search knows how far it can go.

Three arguments, each true of every schedule; the bound is the largest.

Work of one rank. Rank r can start when micro-batch 0 reaches it. Until the first gradient can reach
it (all forwards, then the backwards behind it) it can only run forwards, none of them overlapped;
from its last forward on (the rest of that micro-batch's way to the loss and back to stage 0) it can
only run backwards, none of them overlapped. All other work lies between, where a pair saves
min(h_F, h_B) <= a h_F + (1 - a) h_B for any share a in [0, 1]; the best share is searched. How much
fits into the two ends is also limited by memory: what runs before the first backward is held, and
what is left at the last forward was.

Memory of one rank. A micro-batch is held at a stage at least while it goes from there to the loss
and back, so its memory x time on a rank is at least a constant, and a rank offers limit x makespan.

One micro-batch goes down and up the pipeline.
"""

from dsv3_plugin.schedules.search.problem import EPSILON, Problem

_SHARES = [i / 20 for i in range(21)]


def lower_bound(problem: Problem) -> float:
    """A makespan that no schedule of the problem can beat."""
    costs = problem.costs
    hops = sum(problem.hops)
    way = sum(costs.forward) + sum(costs.input) + 2 * hops + costs.weight[0]
    bounds = [way]
    for rank in range(problem.pp):
        bounds.append(_work_bound(problem, rank))
        bounds.append(_memory_bound(problem, rank))
    return max(bounds)


def _work_bound(problem: Problem, rank: int) -> float:
    costs, count, hops = problem.costs, problem.micro_batches, problem.hops
    stages = problem.rank_stages[rank]
    near, far = stages[0], stages[-1]
    backward = [i + w for i, w in zip(costs.input, costs.weight, strict=True)]
    reached = [sum(costs.forward[:s]) + sum(hops[:s]) for s in range(costs.num_stages)]
    back = sum(costs.forward) + sum(hops)
    first_backward = back + sum(costs.input[far + 1 :]) + sum(hops[far:])
    after_last_forward = (
        sum(costs.forward[far + 1 :])
        + sum(hops[far:])
        + sum(costs.input)
        + sum(hops)
        + costs.weight[0]
    )
    forwards = count * sum(costs.forward[s] for s in stages)
    backwards = count * sum(backward[s] for s in stages)
    head = _room(problem, stages, costs.forward, first_backward - reached[near])
    tail = _room(problem, stages, backward, after_last_forward)

    between = -1.0
    for share in _SHARES:
        left = _left_over(
            head,
            [
                (
                    count * costs.forward[s],
                    max(0.0, first_backward - reached[s]),
                    1 - share * costs.hidden[s] / costs.forward[s],
                )
                for s in stages
                if costs.forward[s]
            ],
        ) + _left_over(
            tail,
            [
                (
                    count * backward[s],
                    tail,
                    1 - (1 - share) * costs.hidden[s] / backward[s],
                )
                for s in stages
                if backward[s]
            ],
        )
        between = max(between, left)
    if between > EPSILON:
        return first_backward + between + after_last_forward
    # All work may fit into the two ends, which may then lie over each other.
    apart = first_backward + after_last_forward
    over = max(reached[near] + forwards + after_last_forward, first_backward + backwards)
    return min(apart, over)


def _room(
    problem: Problem, stages: tuple[int, ...], times: tuple[float, ...] | list[float], free: float
) -> float:
    """Work of the given kind that fits into `free` time and into memory."""
    activation = problem.costs.activation
    if any(activation[s] <= 0 for s in stages):
        return free
    return min(free, problem.limit * max(times[s] / activation[s] for s in stages))


def _left_over(room: float, work: list[tuple[float, float, float]]) -> float:
    """Least time that work takes after the best of it filled the room.

    work: (time, how much of it may go into the room, time it takes outside / its time) per stage.
    """
    left = 0.0
    for time, allowed, factor in sorted(work, key=lambda item: -item[2]):
        inside = min(time, allowed, room)
        room -= inside
        left += (time - inside) * factor
    return left


def _memory_bound(problem: Problem, rank: int) -> float:
    costs, hops = problem.costs, problem.hops
    held = 0.0
    for stage in problem.rank_stages[rank]:
        way = sum(costs.forward[stage:]) + sum(costs.input[stage:]) + 2 * sum(hops[stage:])
        held += costs.activation[stage] * (way + costs.weight[stage])
    return problem.micro_batches * held / problem.limit
