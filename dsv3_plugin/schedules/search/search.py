"""A schedule where the published ones do not reach: few micro-batches, uneven stages, less memory.

It goes in rounds, each longer than the one before, of three steps. Start from the best so far,
from the registered schedules of the same placement that keep to the memory limit, from repeated
blocks (`building_blocks.py`) and from many policies of list scheduling (`list_scheduling.py`), new
ones drawn near the best. Improve the best of these by local search along the critical path
(`local_search.py`), all a little, then the winners. Of all that any step came to, the best stays;
in the end, backwards that were split for nothing are fused.

All of it stops early at the lower bound (`lower_bound.py`), and counts its effort in actions timed,
not in seconds, so that a seed gives one result on every machine. No step knows the effort: less of
it only ends the same search sooner. So more effort never finds a worse schedule.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import Action, Schedule
from dsv3_plugin.schedules.costs import StageCosts
from dsv3_plugin.schedules.placement import placement_of, placement_on, stage_placement
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.search.building_blocks import Block, blocks, repeated
from dsv3_plugin.schedules.search.list_scheduling import list_schedule
from dsv3_plugin.schedules.search.local_search import fuse_backwards, improve
from dsv3_plugin.schedules.search.lower_bound import lower_bound
from dsv3_plugin.schedules.search.policy import Policy, mutated, random_policy
from dsv3_plugin.schedules.search.problem import EPSILON, Problem
from dsv3_plugin.schedules.simulate import simulate
from dsv3_plugin.schedules.timeline import Timeline
from dsv3_plugin.schedules.validate import validate

VERSION = 1
"""Of all that decides what a search finds; a change of it makes what was kept unfindable."""

# Actions timed by a search of effort 1; half a minute of one core in round numbers.
EFFORT = 20_000_000
_FIRST_ROUND, _GROWTH = EFFORT // 21, 4  # 1 + 4 + 16: effort 1 is three rounds
_PRICE_OF_AN_ACTION = 10  # to choose it by policy, or to simulate it, in actions timed
_LEAST_TRIES = 4  # of blocks and of policies, however little effort is allowed


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


def search(
    pp: int,
    micro_batches: int,
    costs: StageCosts,
    limit: float | None = None,
    *,
    seed: int = 0,
    effort: float = 1.0,
) -> Found:
    """The best schedule found, validated.

    costs: of the P x V stages; V follows from their number.
    limit: activations a rank may hold, in P-ths of the model on one micro-batch; by default what
        DualPipeV holds on such stages, P + 1/2 micro-batches.
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
    placement = stage_placement(pp, vp)
    chunks = placement_on(placement).chunks
    least = max(sum(costs.activation[s] for s in stages) for stages in chunks)
    limit = (pp + 0.5) * least if limit is None else limit
    problem = Problem(placement, micro_batches, costs, limit)
    if limit < least - EPSILON:
        raise UserError(
            f"one micro-batch alone holds {least:g} on a rank, more than the limit of {limit:g} "
            "(--activations, in stages of a 1F1B pipeline)"
        )
    under_way = _Search(problem, random.Random(seed), int(EFFORT * effort))
    for number in count():
        under_way.round(_FIRST_ROUND * _GROWTH**number)
        best = under_way.best
        if best is None and under_way.left == 0:
            raise UserError(
                f"search found no schedule that holds {limit:g} activations at most; allow more"
            )
        if best is not None and (under_way.left == 0 or best.makespan <= under_way.bound + EPSILON):
            break
    validate(best.schedule)
    makespans = {start.name: start.makespan for start in under_way.published}
    return Found(best.schedule, best, under_way.bound, makespans)


@dataclass
class _Start:
    """Where the local search sets out from, and how far it has come."""

    name: str
    makespan: float
    rows: Sequence[Sequence[Action]]


class _Search:
    """A search under way.

    Attributes:
        left: effort that is left, in actions timed.
        bound: the lower bound, at which it can stop.
        published: registered schedules to start from, shortest first.
        best: the best so far.
        policy: the best policy of list scheduling, and the makespan that it gave.
    """

    def __init__(self, problem: Problem, rng: random.Random, effort: int) -> None:
        self.problem, self.rng, self.left = problem, rng, effort
        self.bound = lower_bound(problem)
        self.published = _published(problem)
        self.best: Timeline | None = None
        self.policy: tuple[float, Policy] | None = None

    def round(self, budget: int) -> None:
        """Look for something better than the best.

        All that is decided here follows from `budget`, what a whole round takes. The effort that is
        left only ends it, so a round cut short does the beginning of what the whole round does.
        """
        least = _LEAST_TRIES if self.best is None else 0
        repeated_blocks = self._repeated_blocks(budget // 8, least)
        listed = self._list_schedules(budget // 4, least)
        starts = [*map(replace, self.published[:2]), *repeated_blocks[:2], *listed[:3]]
        if self.best is not None:
            starts.append(_start(self.best))
        for start in starts:
            self._keep_if_better(start)
        # A little for each start, more for the better half, the rest for the best.
        for amount in (budget // 8, budget // 8, 3 * budget // 8):
            for start in starts:
                effort = self._take(amount // len(starts))
                start.rows = improve(self.problem, start.rows, self.rng, effort, self.bound)
                start.makespan = simulate(_schedule(start.rows), self.problem.costs).makespan
                self._keep_if_better(start)
            starts.sort(key=lambda start: start.makespan)
            del starts[(len(starts) + 1) // 2 :]

    def _take(self, amount: int) -> int:
        """Spend `amount` of the effort, or what is left of it; how much it was."""
        taken = min(amount, self.left)
        self.left -= taken
        return taken

    def _affordable(self, budget: int, tries: int, least: int) -> int:
        """How many of the `tries` that `budget` pays for are made with what is left of it."""
        return max(least, tries * self._take(budget) // budget)

    def _keep_if_better(self, start: _Start) -> None:
        """Make it the best so far if it is shorter; backwards fused."""
        if self.best is not None and start.makespan >= self.best.makespan:
            return
        # Where messages queue on a link, even a later result that nobody waits for may cost time.
        candidates = (fuse_backwards(self.problem, start.rows), start.rows)
        timelines = [simulate(_schedule(rows), self.problem.costs) for rows in candidates]
        self.best = min(timelines, key=lambda timeline: timeline.makespan)

    def _repeated_blocks(self, budget: int, least: int) -> list[_Start]:
        """The best of a sample of repeated blocks, from the leanest to those at the limit."""
        problem, pp = self.problem, self.problem.pp
        activation = problem.costs.activation
        if problem.costs.num_stages != 2 * pp:
            return []

        def memory(block: Block) -> float:
            return max(
                block.memory(rank, activation[rank], activation[2 * pp - 1 - rank])
                for rank in range(pp)
            )

        fitting = sorted((memory(block), block) for block in blocks(pp))
        fitting = [block for held, block in fitting if held <= problem.limit]
        tries = max(least, budget // (_PRICE_OF_AN_ACTION * 6 * pp * problem.micro_batches), 1)
        sample = fitting[:: max(1, len(fitting) // tries)]
        found = []
        for block in sample[: self._affordable(budget, len(sample), least)]:
            schedule = _schedule(repeated(block, pp, problem.micro_batches))
            found += _within_limit(problem, schedule)
        return sorted(found, key=lambda start: start.makespan)

    def _list_schedules(self, budget: int, least: int) -> list[_Start]:
        """List schedules of many policies, one per makespan, best first."""
        problem, rng = self.problem, self.rng
        size = 5 * problem.costs.num_stages * problem.micro_batches // 2
        tries = max(least, budget // (_PRICE_OF_AN_ACTION * size))
        found: dict[float, _Start] = {}
        for number in range(self._affordable(budget, tries, least)):
            # A quarter of the draws are anywhere, then most are near the best.
            near = self.policy is not None and number > tries / 4 and rng.random() < 0.75
            policy = mutated(self.policy[1], problem, rng) if near else random_policy(problem, rng)
            outcome = list_schedule(problem, policy)
            if outcome is None:
                continue
            makespan, rows = outcome
            found.setdefault(round(makespan, 6), _Start("list", makespan, rows))
            if self.policy is None or makespan <= self.policy[0]:
                self.policy = makespan, policy
            if makespan <= self.bound + EPSILON:
                break
        return sorted(found.values(), key=lambda start: start.makespan)


def _published(problem: Problem) -> list[_Start]:
    """Registered schedules of this placement that exist for its size and keep to its limit."""
    vp = problem.costs.num_stages // problem.pp
    wanted = placement_on(problem.stage_ranks)
    found = []
    for kind in SCHEDULES.values():
        if kind.stages_per_rank in (None, vp):
            for schedule in kind.forms(problem.pp, problem.micro_batches, vp):
                if placement_of(schedule) == wanted:
                    found += _within_limit(problem, schedule)
    return sorted(found, key=lambda start: start.makespan)


def _within_limit(problem: Problem, schedule: Schedule) -> list[_Start]:
    """The schedule as a start, or nothing where it holds too much."""
    timeline = simulate(schedule, problem.costs)
    return [_start(timeline)] if max(timeline.peak_activations) <= problem.limit + EPSILON else []


def _start(timeline: Timeline) -> _Start:
    schedule = timeline.schedule
    rows = [[action for _, action in schedule.actions(rank)] for rank in range(schedule.pp)]
    return _Start(schedule.name, timeline.makespan, rows)


def _schedule(rows: Sequence[Sequence[Action]]) -> Schedule:
    return Schedule("search", tuple(tuple(row) for row in rows))
