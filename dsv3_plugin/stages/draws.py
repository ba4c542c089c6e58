"""Answers for rounds: asked for when a round begins, or while the one before it is trained on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.groups import Group, Scored, expected_of
from dsv3_plugin.rollouts.order import Order
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.stages.journal import Journal
from dsv3_plugin.stages.policy import Policy
from dsv3_plugin.stages.round_numbers import Costs


@dataclass(frozen=True)
class Drawn:
    """Answers for a round.

    Attributes:
        groups: all of them that are whole.
        learned: places of those that are trained on.
        version: of the weights that they are from: the steps that had been taken.
        costs: of them.
        made: tokens that were made for the round, where those are not all of its answers' alone.
        unfinished: answers that are gone on with in the next.
    """

    groups: list[Group]
    learned: list[int]
    version: int
    costs: Costs
    made: int | None = None
    unfinished: int = 0

    @property
    def trained(self) -> list[Group]:
        """Those that are trained on."""
        return [self.groups[place] for place in self.learned]

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Drawn":
        """As `asdict` has written it."""
        groups = [_group(group) for group in state["groups"]]
        return cls(**state | {"groups": groups, "costs": Costs(**state["costs"])})

    @property
    def oldest(self) -> int:
        """Version of the oldest weights that answers which are trained on are from."""
        if self.made is None:
            return self.version
        versions = (
            min(answer.rollout.versions) for group in self.trained for answer in group.answers
        )
        return min(versions, default=self.version)


@dataclass(frozen=True)
class _Begun:
    """A round that is asked for.

    Attributes:
        model: that answers.
        version: of its weights.
        step: that begins with the round.
        asked: its first prompts.
        begun: of each of them answers that are gone on with.
        kept: answers to them, where they had been made before the run ended.
    """

    model: Sequence[torch.nn.Module]
    version: int
    step: int
    asked: list[Asked]
    begun: list[tuple[Rollout, ...]]
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
        self._unfinished: list[Group] = []

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
        again = asked_again(self._unfinished, self._policy.data.members) if self._unfinished else []
        begun = [tuple(answer.rollout for answer in one.answers) for one in self._unfinished]
        # There are more of them than a round has where several askings have left some.
        new = self.order.take(max(self._recipe.rollouts.prompts - len(again), 0))
        asked, begun = [*again, *new], [*begun, *[()] * len(new)]
        kept = self._journal.read(step, 0, _tokens(asked, begun), version)
        self._begun = _Begun(model, version, step, asked, begun, kept)
        if kept is None:
            self._ask(self._begun, asked, 0, begun)
        if self._recipe.rollouts.kind == "embedded":
            self.settle()

    def settle(self) -> None:
        """Wait for what is under way: behind this, the one who answers may be given other weights,
        and asked something else."""
        if (round_ := self._begun) is None:
            return
        settings, asked, begun = self._recipe.rollouts, round_.asked, round_.begun
        groups: list[Group] = []
        unfinished: list[Group] = []
        learned: list[int] = []
        costs, made = Costs(), 0
        for number in range(settings.dynamic_sampling):
            kept = round_.kept
            if number:
                asked = self.order.take(settings.prompts)
                begun = [()] * len(asked)
                kept = self._journal.read(
                    round_.step, number, _tokens(asked, begun), round_.version
                )
                if kept is None:
                    self._ask(round_, asked, number, begun)
            found, cost = kept or self._asked_for(round_, asked, number, begun)
            self._measure(asked, found)
            behind = (answer.rollout for group in found for answer in group.answers)
            before = (answer for own in begun for answer in own)
            made += _of(round_.version, behind) - _of(round_.version, before)
            unfinished += [group for group in found if group.unfinished]
            whole = [group for group in found if not group.unfinished]
            learned += [
                place
                for place, group in enumerate(whole, start=len(groups))
                if settings.dynamic_sampling == 1 or group.tells_apart
            ]
            groups, costs = groups + whole, costs.and_then(cost)
            if len(learned) + len(unfinished) >= settings.prompts:  # which may tell apart yet
                break
        self._begun, self._unfinished = None, unfinished
        # Also where that was said when the answers were begun, and is no more.
        in_parts = settings.partial is not None or any(round_.begun)
        self._ready = Drawn(
            groups,
            learned[: settings.prompts],
            round_.version,
            costs,
            made=made if in_parts else None,
            unfinished=sum(group.unfinished for group in unfinished),
        )

    def _ask(
        self,
        round_: _Begun,
        asked: Sequence[Asked],
        number: int,
        begun: Sequence[tuple[Rollout, ...]],
    ) -> None:
        settings, seed = self._recipe.rollouts, self._seed(round_.step, number)
        self._policy.ask(
            round_.model, asked, settings.n, seed, round_.version, begun, settings.partial
        )

    def _asked_for(
        self,
        round_: _Begun,
        asked: Sequence[Asked],
        number: int,
        begun: Sequence[tuple[Rollout, ...]],
    ) -> tuple[list[Group], Costs]:
        """What was asked last, once it is on the disk."""
        groups, costs = self._policy.asked_for()
        self._journal.keep(
            round_.step, number, _tokens(asked, begun), round_.version, groups, costs
        )
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
                if not group.unfinished:
                    self.order.curriculum.measured(one, group.pass_rate)

    def _seed(self, step: int, number: int) -> object:
        return self._recipe.training.seed, step, number

    def state_dict(self) -> dict[str, Any]:
        """What a run needs that goes on: answers that are under way are waited for."""
        self.settle()
        ahead = None if self._ready is None else asdict(self._ready)
        order = self.order.state_dict() if "order" in vars(self) else dict(self._state)
        unfinished = [asdict(group) for group in self._unfinished]
        return order | {"ahead": ahead} | ({"unfinished": unfinished} if unfinished else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        own = {"ahead", "unfinished"}
        self._state = {key: value for key, value in state.items() if key not in own}
        vars(self).pop("order", None)
        ahead = state.get("ahead")
        self._ready = None if ahead is None else Drawn.of(ahead)
        self._unfinished = [_group(one) for one in state.get("unfinished", [])]


def asked_again(groups: Sequence[Group], members: Sequence[Sequence[Asked]]) -> list[Asked]:
    """The prompts of answers that are gone on with, as a run has them.

    Args:
        groups: of these answers.
        members: all prompts, by the members of their mixture.
    """
    known = {(one.tokens, expected_of(one)): one for member in members for one in member}
    return [known[tuple(one.answers[0].rollout.prompt), one.expected] for one in groups]


def _of(version: int, answers: Iterable[Rollout]) -> int:
    """Tokens that are from these weights."""
    return sum(answer.versions.count(version) for answer in answers)


def _tokens(asked: Sequence[Asked], begun: Sequence[tuple[Rollout, ...]]) -> list[tuple[int, ...]]:
    """Of each prompt, and of its answers that are gone on with."""
    return [
        (*one.tokens, *(token for answer in own for token in answer.tokens))
        for one, own in zip(asked, begun, strict=True)
    ]


def _group(state: Mapping[str, Any]) -> Group:
    """As `asdict` has written it."""
    return Group(**state | {"answers": tuple(map(_scored, state["answers"]))})


def _scored(state: Mapping[str, Any]) -> Scored:
    return Scored(**state | {"rollout": Rollout(**state["rollout"])})
