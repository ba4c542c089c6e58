"""Prompts by how often they were answered rightly: neither what a model cannot do yet nor what it
can do already teaches it anything.

A prompt whose rate lay out of bounds when it was asked last is passed over, except now and then, so
that its rate is measured again: the model has changed.

PRIME filters prompts, too, within the round that has sampled their answers (arXiv 2502.01456,
section 3.3: by a range of accuracy that the paper does not tell; the cards of its models say 0.2 to
0.8). Here nothing is sampled in vain, and rates are a round or more old. Of answers that were
sampled, `rollouts.dynamic_sampling` leaves out those of equal rewards, as DAPO does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy

from dsv3_plugin.rollouts.asked import Asked


@dataclass
class Curriculum:
    """Rates as they were measured, and what follows from them.

    Attributes:
        low, high: bounds of rates, both among those that are asked.
        again: how likely one is asked that is out of bounds.
        seed: of these draws.
        rates: by the prompts' keys, of when each was asked last.
        passed_over: how many times one was not asked.
    """

    low: float
    high: float
    again: float
    seed: int
    rates: dict[str, float] = field(default_factory=dict)
    passed_over: int = 0

    def asks(self, one: Asked, member: int, place: int) -> bool:
        """Whether a prompt is asked where its turn has come.

        Args:
            one: the prompt.
            member, place: its turn, from which the draw follows.
        """
        rate = self.rates.get(one.prompt.key)
        if rate is None or self.low <= rate <= self.high:
            return True
        drawn = numpy.random.default_rng([self.seed, member, place]).random()
        asked = bool(drawn < self.again)
        self.passed_over += not asked
        return asked

    def measured(self, one: Asked, rate: float | None) -> None:
        """A prompt was answered, rightly so often; None: nothing of it could be judged."""
        if rate is not None:
            self.rates[one.prompt.key] = rate

    def numbers(self) -> dict[str, float]:
        """Of a step's line."""
        within = sum(self.low <= rate <= self.high for rate in self.rates.values())
        return {
            "rl/curriculum_measured": len(self.rates),
            "rl/curriculum_within": within / max(len(self.rates), 1),
            "rl/curriculum_passed_over": self.passed_over,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a run needs that goes on."""
        return {"rates": dict(self.rates), "passed_over": self.passed_over}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self.rates, self.passed_over = dict(state["rates"]), state["passed_over"]
