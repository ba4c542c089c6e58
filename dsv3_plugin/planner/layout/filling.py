"""Layers given to stages one by one; those before the last change of kind are laid out already."""

import heapq
from collections.abc import Iterator, Sequence

from dsv3_plugin.planner.layout.division import Division
from dsv3_plugin.planner.stages import Stage

MOST_LEADING = 8
"""Layers before the last change of kind that are laid out in every way; each doubles the ways."""


class DoesNotFit(Exception):
    """No layout was found that fits into memory.

    Attributes:
        rank: the pipeline rank that has no room for a further layer.
        needed: bytes that it would hold with one.
    """

    def __init__(self, rank: int, needed: float) -> None:
        super().__init__(f"rank {rank} would need {needed:,.0f} bytes")
        self.rank, self.needed = rank, needed


def leading_layers(division: Division) -> int:
    """How many layers come before the last change of kind."""
    kinds = division.kinds
    return max((n for n, kind in enumerate(kinds, start=1) if kind != kinds[-1]), default=0)


def ways_to_begin(division: Division) -> Iterator[tuple[int, ...]]:
    """Every way of laying out the layers before the last change of kind: how many on each stage.

    The last stage of a way may take further layers, those before it may not. Where they are too
    many, they are taken for such as come after them, and the only way is to lay out none.
    """
    leading = leading_layers(division)
    if leading > MOST_LEADING:
        leading = 0

    def ways(stage: int, left: int) -> Iterator[tuple[int, ...]]:
        if left == 0:
            yield ()
        elif stage < division.depth:
            for here in range(division.least(stage), left + 1):
                for further in ways(stage + 1, left - here):
                    yield (here, *further)

    return ways(0, leading)


class Filling:
    """Stages being filled.

    Attributes:
        layers: how many each holds so far.
        left: layers that no stage holds yet.
    """

    def __init__(self, division: Division, leading: Sequence[int], *, later: bool = False) -> None:
        """Each stage with the leading layers and else with the fewest that it must hold.

        Args:
            division: what is divided.
            leading: layers of the first stages, as `ways_to_begin` gives them.
            later: of two stages of a rank that have as much to do, the later one takes a layer.
        """
        self.division, self._later = division, later
        self._open = max(0, len(leading) - 1)  # the first stage that takes further layers
        self.layers = [
            leading[stage] if stage < len(leading) else division.least(stage)
            for stage in range(division.depth)
        ]
        self.left = len(division.kinds) - sum(self.layers)

    def stage(self, number: int, more: int = 0) -> Stage:
        """A stage as it is, or with more layers."""
        count = self.layers[number] + more
        # Layers after the last change of kind are alike: the last ones stand for any.
        begins_here = number <= self._open
        first = sum(self.layers[:number]) if begins_here else len(self.division.kinds) - count
        return self.division.stage(number, first, count)

    def busy(self, group: int) -> float:
        """Seconds of a group of stages as they are."""
        return self.division.seconds([self.stage(s) for s in self.division.groups[group]])

    def require_room(self) -> None:
        """Raise DoesNotFit if not even what is laid out by now does."""
        for group, held in enumerate(self.division.groups):
            refused = self.division.too_much(group, [self.stage(s) for s in held])
            if refused is not None:
                raise DoesNotFit(*refused)

    def next(self, group: int) -> tuple[float, int] | DoesNotFit | None:
        """What a group of stages is busy with a further layer, and the stage that takes it.

        The one of its stages with least to do takes it, or another where that does not fit. None:
        none of them takes any; DoesNotFit: there is no room.
        """
        division, held = self.division, self.division.groups[group]
        takers = [stage for stage in held if stage >= self._open and self.left]
        sign = -1 if self._later else 1
        takers.sort(key=lambda stage: (division.seconds([self.stage(stage)]), sign * stage))
        refusal = None
        for taker in takers:
            stages = [self.stage(stage, int(stage == taker)) for stage in held]
            refused = division.too_much(group, stages)
            if refused is None:
                return division.seconds(stages), taker
            refusal = refusal or DoesNotFit(*refused)
        return refusal

    def fill(self) -> float:
        """Give all that are left to the group least busy with it, one by one.

        Returns:
            What the busiest has then, which is the least that it can have.

        Raises:
            DoesNotFit: not all have room.
        """
        self.require_room()
        groups = range(len(self.division.groups))
        refusals: list[DoesNotFit] = []
        queue: list[tuple[float, int, int]] = []

        def enter(group: int) -> None:
            following = self.next(group)
            if isinstance(following, DoesNotFit):
                refusals.append(following)
            elif following is not None:
                heapq.heappush(queue, (following[0], group, following[1]))

        for group in groups:
            enter(group)
        while self.left:
            if not queue:
                raise min(refusals, key=lambda refusal: refusal.needed)
            _, group, stage = heapq.heappop(queue)
            self.layers[stage] += 1
            self.left -= 1
            enter(group)
        return max(map(self.busy, groups))

    def fill_below(self, ceiling: float, order: Sequence[int]) -> bool:
        """Give all that are left to groups, none busier than `ceiling`.

        Every group is filled up to the ceiling, and what is too much taken away again, a layer from
        each in turn.

        Args:
            ceiling: seconds.
            order: groups in the order in which they are relieved.

        Returns:
            Whether they can hold all.
        """
        given: list[list[int]] = [[] for _ in self.division.groups]
        for group in order:
            if self.busy(group) > ceiling:
                return False
            while len(given[group]) < self.left:
                following = self.next(group)
                if not isinstance(following, tuple) or following[0] > ceiling:
                    break
                self.layers[following[1]] += 1
                given[group].append(following[1])
        surplus = sum(map(len, given)) - self.left
        while surplus > 0:
            for group in order:
                if given[group] and surplus:
                    self.layers[given[group].pop()] -= 1
                    surplus -= 1
        self.left = 0 if surplus == 0 else -surplus
        return surplus == 0
