"""In which order prompts are asked: seeded, in epochs, from mixtures by their weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy

from dsv3_plugin.rollouts.asked import Asked


@dataclass
class Order:
    """Prompts without end; what comes next follows from how many have come.

    Attributes:
        members: the prompts of each member of a mixture.
        weights: of these.
        seed: of the order.
    """

    members: Sequence[Sequence[Asked]]
    weights: Sequence[float]
    seed: int
    _given: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._given = [0] * len(self.members)

    @property
    def given(self) -> int:
        """How many have come."""
        return sum(self._given)

    def go_on_from(self, number: int) -> None:
        """Begin where so many have come."""
        self._given = [0] * len(self.members)
        for _ in range(number):
            self._given[self._due()] += 1

    def take(self, number: int) -> list[Asked]:
        """The next so many."""
        taken = []
        for _ in range(number):
            member = self._due()
            taken.append(self._of_member(member, self._given[member]))
            self._given[member] += 1
        return taken

    def _due(self) -> int:
        """The member that lags most behind its share."""
        total, next_one = sum(self.weights), self.given + 1
        lags = [
            weight / total * next_one - given
            for weight, given in zip(self.weights, self._given, strict=True)
        ]
        return max(range(len(lags)), key=lags.__getitem__)

    def _of_member(self, member: int, place: int) -> Asked:
        prompts = self.members[member]
        epoch, index = divmod(place, len(prompts))
        order = numpy.random.default_rng([self.seed, member, epoch]).permutation(len(prompts))
        return prompts[order[index]]
