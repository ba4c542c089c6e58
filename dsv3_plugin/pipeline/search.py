"""A schedule where the published ones do not reach: few micro-batches, uneven stages, less memory.

Three steps. Start from the published schedules of the same placement that keep to the memory limit,
from repeated blocks (`blocks.py`) and from many policies of list scheduling (`greedy.py`), new ones
drawn near the best so far. Improve the best of these by local search along the critical path
(`improve.py`), all a little, then the winners. Fuse backwards that were split for nothing.

All of it stops early at the lower bound (`bound.py`), and counts its effort in actions timed, not
in seconds, so that a seed gives one result on every machine.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from dsv3_plugin.errors import UserError
from dsv3_plugin.pipeline.actions import Action, Schedule
from dsv3_plugin.pipeline.blocks import Block, blocks, repeated
from dsv3_plugin.pipeline.bound import lower_bound
from dsv3_plugin.pipeline.costs import StageCosts
from dsv3_plugin.pipeline.greedy import (
    Policy,
    Problem,
    list_schedule,
    mutated,
    random_policy,
)
from dsv3_plugin.pipeline.improve import fuse_backwards, improve
from dsv3_plugin.pipeline.schedules import dualpipe_v, interleaved, one_f_one_b, zb1p, zbv
from dsv3_plugin.pipeline.simulate import Timeline, simulate
from dsv3_plugin.pipeline.validate import validate

# Actions timed by a search of effort 1; half a minute of one core in round numbers.
EFFORT = 20_000_000
_PRICE_OF_AN_ACTION = 10  # to choose it by policy, or to simulate it, in actions timed


@dataclass(frozen=True)
class Found:
    """What a search found.

    bound: a makespan that no schedule of this problem can beat.
    published: makespans of the published schedules that the problem admits, by name.
    """

    schedule: Schedule
    timeline: Timeline
    bound: float
    published: dict[str, float]

    @property
    def distance(self) -> float:
        """How far above the bound the makespan is, as a fraction of the bound."""
        return self.timeline.makespan / self.bound - 1

    def summary(self) -> dict[str, object]:
        """What `dsv3 schedule search --json` prints."""
        return self.timeline.summary() | {
            "lower_bound": self.bound,
            "distance": self.distance,
            "published": self.published,
        }


def stage_placement(pp: int, vp: int) -> tuple[int, ...]:
    """The rank of each of the P x V stages: a line for one chunk per rank, a V for two, else loops.

    The V puts stages r and 2P-1-r on rank r; loops put r, P+r, 2P+r, ... there, as Megatron does.
    """
    line = tuple(range(pp))
    return line + line[::-1] if vp == 2 else line * vp


def search(
    pp: int,
    micro_batches: int,
    costs: StageCosts,
    limit: float,
    *,
    seed: int = 0,
    effort: float = 1.0,
) -> Found:
    """The best schedule found, validated.

    costs: of the P x V stages; V follows from their number.
    limit: activations a rank may hold, in P-ths of the model on one micro-batch.
    effort: 1 takes half a minute on one core; deterministic for equal `seed` and `effort`.
    Raises `UserError` where not even one micro-batch fits into the limit.
    """
    vp, remainder = divmod(costs.num_stages, pp)
    if remainder or not vp:
        raise UserError(
            f"search needs the same number of stages on each of {pp} ranks, not "
            f"{costs.num_stages} stages"
        )
    if micro_batches < 1:
        raise UserError("search needs at least one micro-batch")
    problem = Problem(stage_placement(pp, vp), micro_batches, costs, limit)
    least = max(sum(costs.activation[s] for s in stages) for stages in problem.rank_stages)
    if limit < least - 1e-9:
        raise UserError(
            f"one micro-batch alone holds {least:g} on a rank, more than the limit of {limit:g} "
            "(--activations, in stages of a 1F1B pipeline)"
        )
    rng = random.Random(seed)
    bound = lower_bound(problem)
    budget = int(EFFORT * effort)

    published = _published(problem)
    makespans = {start.name: start.makespan for start in published}
    starts = [
        *published[:2],
        *_repeated_blocks(problem, budget // 8)[:2],
        *_list_schedules(problem, rng, budget // 4, bound)[:3],
    ]
    if not starts:
        raise UserError(
            f"search found no schedule that holds {limit:g} activations at most; allow more"
        )
    # A little for each start, more for the better half, the rest for the best.
    for share in (budget // 8, budget // 8, budget // 2):
        for start in starts:
            start.rows = improve(problem, start.rows, rng, share // len(starts), bound)
            start.makespan = simulate(_schedule(start.rows), costs).makespan
        starts.sort(key=lambda start: start.makespan)
        del starts[(len(starts) + 1) // 2 :]
    rows = starts[0].rows
    # Where messages queue on a link, even a later result that nobody waits for may cost time.
    timelines = [simulate(_schedule(r), costs) for r in (fuse_backwards(problem, rows), rows)]
    timeline = min(timelines, key=lambda timeline: timeline.makespan)
    validate(timeline.schedule)
    return Found(timeline.schedule, timeline, bound, makespans)


def _schedule(rows: Sequence[Sequence[Action]]) -> Schedule:
    return Schedule("search", tuple(tuple(row) for row in rows))


@dataclass
class _Start:
    """Where the local search sets out from, and how far it has come."""

    name: str
    makespan: float
    rows: Sequence[Sequence[Action]]


def _published(problem: Problem) -> list[_Start]:
    """Published schedules of this placement that exist for its size and keep to its limit."""
    vp = problem.costs.num_stages // problem.pp
    if vp == 1:
        makers = (one_f_one_b, zb1p)
    elif vp == 2:
        makers = (zbv, dualpipe_v)
    else:
        makers = (partial(interleaved, vp=vp), partial(interleaved, vp=vp, overlap=True))
    found = []
    for maker in makers:
        try:
            schedule = maker(problem.pp, problem.micro_batches)
        except UserError:
            continue  # it needs more micro-batches
        found += _within_limit(problem, schedule)
    return sorted(found, key=lambda start: start.makespan)


def _within_limit(problem: Problem, schedule: Schedule) -> list[_Start]:
    """The schedule as a start, or nothing where it holds too much."""
    timeline = simulate(schedule, problem.costs)
    if max(timeline.peak_activations) > problem.limit + 1e-9:
        return []
    rows = [[action for _, action in schedule.actions(rank)] for rank in range(schedule.pp)]
    return [_Start(schedule.name, timeline.makespan, rows)]


def _repeated_blocks(problem: Problem, budget: int) -> list[_Start]:
    """The best of a sample of repeated blocks, from the leanest to those that fill the limit."""
    pp, activation = problem.pp, problem.costs.activation
    if problem.costs.num_stages != 2 * pp:
        return []

    def memory(block: Block) -> float:
        return max(
            block.memory(rank, activation[rank], activation[2 * pp - 1 - rank])
            for rank in range(pp)
        )

    fitting = sorted((memory(block), block) for block in blocks(pp))
    fitting = [block for held, block in fitting if held <= problem.limit]
    tries = max(4, budget // (_PRICE_OF_AN_ACTION * 6 * pp * problem.micro_batches))
    found = []
    for block in fitting[:: max(1, len(fitting) // tries)]:
        schedule = _schedule(repeated(block, pp, problem.micro_batches))
        found += _within_limit(problem, schedule)
    return sorted(found, key=lambda start: start.makespan)


def _list_schedules(
    problem: Problem, rng: random.Random, budget: int, bound: float
) -> list[_Start]:
    """List schedules of many policies, one per makespan, best first."""
    size = 5 * problem.costs.num_stages * problem.micro_batches // 2
    tries = max(4, budget // (_PRICE_OF_AN_ACTION * size))
    found: dict[float, _Start] = {}
    best: tuple[float, Policy] | None = None
    for number in range(tries):
        # A quarter of the draws are anywhere, then most are near the best.
        near = best is not None and number > tries / 4 and rng.random() < 0.75
        policy = mutated(best[1], problem, rng) if near else random_policy(problem, rng)
        outcome = list_schedule(problem, policy)
        if outcome is None:
            continue
        makespan, rows = outcome
        found.setdefault(round(makespan, 6), _Start("list", makespan, rows))
        if best is None or makespan <= best[0]:
            best = makespan, policy
        if makespan <= bound + 1e-9:
            break
    return sorted(found.values(), key=lambda start: start.makespan)
