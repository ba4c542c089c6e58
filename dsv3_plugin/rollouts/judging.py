"""The rewards of a recipe, and what they make of answers."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.rl import Reward, Rl
from dsv3_plugin.rewards import forms, functions, sandbox
from dsv3_plugin.rewards.by_name import COMPARING, judge_of
from dsv3_plugin.rewards.http import RewardModel
from dsv3_plugin.rewards.verdict import Attempt, Judge, Judged, Weighted, judged
from dsv3_plugin.rollouts.prompts import RewardNames
from dsv3_plugin.web import Patience, refuse_address


class Judging:
    """Judges answers by a recipe's rewards; use as a context, which ends its processes.

    Args:
        rewards: by name.
        max_tokens: of an answer.
    """

    def __init__(self, rewards: Mapping[str, Reward], max_tokens: int) -> None:
        self._rewards, self._max_tokens = rewards, max_tokens
        self._stack = ExitStack()
        self._weighted: dict[str, Weighted] = {}

    @property
    def names(self) -> RewardNames:
        """Which rewards prompts may name; those that name none are judged by all."""
        known = tuple(self._rewards)
        return RewardNames(known, known, [name for name in known if name in COMPARING])

    @classmethod
    def of(cls, recipe: Rl) -> "Judging":
        """By the rewards of a recipe."""
        return cls(recipe.rewards, recipe.rollouts.max_tokens)

    def __enter__(self) -> "Judging":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def judge(self, attempts: Sequence[Attempt], names: Sequence[tuple[str, ...]]) -> list[Judged]:
        """Judge answers, each by the rewards that its prompt names.

        Raises:
            UserError: a function that the recipe names is not there.
        """
        verdicts: dict[int, Judged] = {}
        for asked in dict.fromkeys(names):
            numbers = [number for number, own in enumerate(names) if own == asked]
            rewards = [self._of(name) for name in asked]
            found = judged([attempts[number] for number in numbers], rewards)
            verdicts |= dict(zip(numbers, found, strict=True))
        return [verdicts[number] for number in range(len(attempts))]

    def _of(self, name: str) -> Weighted:
        if name not in self._weighted:
            reward = self._rewards[name]
            cap = None if reward.cap is None else (reward.cap[0], reward.cap[1])
            self._weighted[name] = Weighted(name, self._judge(name, reward), reward.weight, cap)
        return self._weighted[name]

    def _judge(self, name: str, reward: Reward) -> Judge:
        if reward.address is not None:
            return self._stack.enter_context(_model(name, reward)).judge
        if name == "length":
            return forms.within(self._max_tokens, reward.margin)
        if name == "language":
            return forms.in_script(reward.script)
        return judge_of(name, reward.seconds, self._stack)


def refuse_missing(rewards: Mapping[str, Reward]) -> None:
    """Raise UserError for the first reward that is not there: a function, a sandbox for code, the
    address of a reward model or its key. No service is asked."""
    for name, reward in rewards.items():
        if reward.address is not None:
            try:
                refuse_address(reward.address)
            except UserError as error:
                raise UserError(f"rewards.{name}.address: {error}") from None
            _key(name, reward)
        elif name == "code":
            sandbox.check()
        elif "." in name:
            functions.named(name)


def _key(name: str, reward: Reward) -> str | None:
    variable = reward.key_variable
    if variable is not None and variable not in os.environ:
        raise UserError(
            f"rewards.{name}.key_variable: there is no environment variable {variable}: set it, or "
            f"leave the key out."
        )
    return os.environ[variable] if variable else None


def _model(name: str, reward: Reward) -> RewardModel:
    key = _key(name, reward)
    if reward.seconds is None:
        return RewardModel(reward.address, key=key)
    patience = Patience(attempt=reward.seconds)
    return RewardModel(reward.address, key=key, seconds=reward.seconds, patience=patience)
