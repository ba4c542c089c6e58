"""Answers for rounds: asked for when a round begins, or while the one before it is trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.groups import Group, Scored
from dsv3_plugin.rollouts.order import Order
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.stages.journal import Journal
from dsv3_plugin.stages.policy import Policy
from dsv3_plugin.stages.round_numbers import Costs


@dataclass(frozen=True)
class Drawn:
    """Answers for a round.

    Attributes:
        groups: all of them.
        learned: places of those that are trained on.
        version: of the weights that they are from: the steps that had been taken.
        costs: of them.
    """

    groups: list[Group]
    learned: list[int]
    version: int
    costs: Costs

    @property
    def trained(self) -> list[Group]:
        """Those that are trained on."""
        return [self.groups[place] for place in self.learned]

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Drawn":
        """As `asdict` has written it."""
        groups = [
            Group(**group | {"answers": tuple(map(_scored, group["answers"]))})
            for group in state["groups"]
        ]
        return cls(groups, state["learned"], state["version"], Costs(**state["costs"]))


@dataclass(frozen=True)
class _Begun:
    """A round that is asked for.

    Attributes:
        model: that answers.
        version: of its weights.
        step: that begins with the round.
        asked: its first prompts.
        kept: answers to them, where they had been made before the run ended.
    """

    model: Sequence[torch.nn.Module]
    version: int
    step: int
    asked: list[Asked]
    kept: tuple[list[Group], Costs] | None


class Draws:
    """Has the model answer for one round at a time; all ranks call each method.

    Args:
        recipe: the run's.
        policy: who answers.
        journal: what they have answered before the run ended.
    """

    def __init__(self, recipe: Rl, policy: Policy, journal: Journal) -> None:
        self._recipe, self._policy, self._journal = recipe, policy, journal
        self._state: Mapping[str, Any] = {"asked": 0}
        self._begun: _Begun | None = None
        self._ready: Drawn | None = None

    @cached_property
    def order(self) -> Order:
        """In which prompts come."""
        order = self._policy.data.order(self._recipe)
        order.load_state_dict(self._state)
        return order

    @property
    def under_way(self) -> bool:
        """Whether a round is asked for that nobody has taken."""
        return self._begun is not None or self._ready is not None

    def begin(self, model: Sequence[torch.nn.Module], version: int, step: int) -> None:
        """Ask for a round. A server answers while its callers go on; an engine of ours computes
        with the weights where they lie, before they move.

        Args:
            model: this rank's chunks.
            version: of the weights: the steps that were taken.
            step: that begins with the round, of which its seeds are.
        """
        asked = self.order.take(self._recipe.rollouts.prompts)
        kept = self._journal.read(step, 0, asked, version)
        self._begun = begun = _Begun(model, version, step, asked, kept)
        if kept is None:
            self._ask(begun, asked, 0)
        if self._recipe.rollouts.kind == "embedded":
            self.settle()

    def settle(self) -> None:
        """Wait for what is under way: behind this, the one who answers may be given other weights,
        and asked something else."""
        if (begun := self._begun) is None:
            return
        settings, asked = self._recipe.rollouts, begun.asked
        groups: list[Group] = []
        learned: list[int] = []
        costs = Costs()
        for number in range(settings.dynamic_sampling):
            kept = begun.kept
            if number:
                asked = self.order.take(settings.prompts)
                kept = self._journal.read(begun.step, number, asked, begun.version)
                if kept is None:
                    self._ask(begun, asked, number)
            found, cost = kept or self._asked_for(begun, asked, number)
            self._measure(asked, found)
            learned += [
                place
                for place, group in enumerate(found, start=len(groups))
                if settings.dynamic_sampling == 1 or group.tells_apart
            ]
            groups, costs = groups + found, costs.and_then(cost)
            if len(learned) >= settings.prompts:
                break
        self._begun = None
        self._ready = Drawn(groups, learned[: settings.prompts], begun.version, costs)

    def _ask(self, begun: _Begun, asked: Sequence[Asked], number: int) -> None:
        n, seed = self._recipe.rollouts.n, self._seed(begun.step, number)
        self._policy.ask(begun.model, asked, n, seed, begun.version)

    def _asked_for(
        self, begun: _Begun, asked: Sequence[Asked], number: int
    ) -> tuple[list[Group], Costs]:
        """What was asked last, once it is on the disk."""
        groups, costs = self._policy.asked_for()
        self._journal.keep(begun.step, number, asked, begun.version, groups, costs)
        return groups, costs

    def take(self) -> Drawn:
        """The round that was begun."""
        self.settle()
        drawn, self._ready = self._ready, None
        return drawn

    def forget(self, step: int) -> None:
        """Have the round that begins with a step asked for again by a run that goes on."""
        self._journal.forget(step)

    def _measure(self, asked: Sequence[Asked], groups: Sequence[Group]) -> None:
        if self.order.curriculum is not None:
            for one, group in zip(asked, groups, strict=True):
                self.order.curriculum.measured(one, group.pass_rate)

    def _seed(self, step: int, number: int) -> object:
        return self._recipe.training.seed, step, number

    def state_dict(self) -> dict[str, Any]:
        """What a run needs that goes on: answers that are under way are waited for."""
        self.settle()
        ahead = None if self._ready is None else asdict(self._ready)
        order = self.order.state_dict() if "order" in vars(self) else dict(self._state)
        return order | {"ahead": ahead}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self._state = {key: value for key, value in state.items() if key != "ahead"}
        vars(self).pop("order", None)
        ahead = state.get("ahead")
        self._ready = None if ahead is None else Drawn.of(ahead)


def _scored(state: Mapping[str, Any]) -> Scored:
    return Scored(**state | {"rollout": Rollout(**state["rollout"])})
