"""In which order prompts are asked: seeded, in epochs, from mixtures by their weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.curriculum import Curriculum


@dataclass
class Order:
    """Prompts without end; what comes next follows from how many have come, and where there is a
    curriculum from what has become of them.

    Attributes:
        members: the prompts of each member of a mixture.
        weights: of these.
        seed: of the order.
        curriculum: by which prompts are passed over; None: by none.
    """

    members: Sequence[Sequence[Asked]]
    weights: Sequence[float]
    seed: int
    curriculum: Curriculum | None = None
    _given: list[int] = field(init=False)
    _places: list[int] = field(init=False)
    _epochs: dict[tuple[int, int], numpy.ndarray] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._given = [0] * len(self.members)
        self._places = [0] * len(self.members)

    @property
    def given(self) -> int:
        """How many have come."""
        return sum(self._given)

    def go_on_from(self, number: int) -> None:
        """Begin where so many have come, and none was passed over."""
        self._given = [0] * len(self.members)
        for _ in range(number):
            self._given[self._due()] += 1
        self._places = [*self._given]

    def take(self, number: int) -> list[Asked]:
        """The next so many."""
        taken = []
        for _ in range(number):
            member = self._due()
            taken.append(self._next(member))
            self._given[member] += 1
        return taken

    def state_dict(self) -> dict[str, Any]:
        """What a run needs that goes on."""
        state = {"asked": self.given, "places": [*self._places]}
        return state | (self.curriculum.state_dict() if self.curriculum else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up; of a run of version 0.1, or without a curriculum so far, what it has."""
        self.go_on_from(state["asked"])
        self._places = [*state.get("places", self._places)]
        if self.curriculum is not None and "rates" in state:
            self.curriculum.load_state_dict(state)

    def _due(self) -> int:
        """The member that lags most behind its share."""
        total, next_one = sum(self.weights), self.given + 1
        lags = [
            weight / total * next_one - given
            for weight, given in zip(self.weights, self._given, strict=True)
        ]
        return max(range(len(lags)), key=lags.__getitem__)

    def _next(self, member: int) -> Asked:
        """Of a member; where a whole epoch would be passed over, what it ends with."""
        for _ in self.members[member]:
            place = self._places[member]
            self._places[member] += 1
            one = self._at(member, place)
            if self.curriculum is None or self.curriculum.asks(one, member, place):
                break
        return one

    def _at(self, member: int, place: int) -> Asked:
        prompts = self.members[member]
        epoch, index = divmod(place, len(prompts))
        if (member, epoch) not in self._epochs:
            draw = numpy.random.default_rng([self.seed, member, epoch])
            self._epochs = {key: kept for key, kept in self._epochs.items() if key[0] != member}
            self._epochs[member, epoch] = draw.permutation(len(prompts))
        return prompts[self._epochs[member, epoch][index]]
