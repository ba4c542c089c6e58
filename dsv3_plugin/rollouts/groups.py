"""Answers with what they are worth, in groups of one prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.grpo.advantages import Scale, advantages_of, tells_apart
from dsv3_plugin.rewards.conclusion import conclusion
from dsv3_plugin.rewards.verdict import Attempt
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.judging import Judging
from dsv3_plugin.rollouts.rollout import Rollout


@dataclass(frozen=True)
class Scored:
    """An answer that was judged.

    Attributes:
        rollout: it.
        text: of it, without what ended it.
        reward: the weighted sum; None: it could not be judged, and is not learned from.
        parts: the value of each reward by its name; None where one could not judge.
        problems: why, by the reward's name.
        passed: whether it is right, by the first of its rewards.
        said: what it comes to, without the words around it.
    """

    rollout: Rollout
    text: str
    reward: float | None
    parts: Mapping[str, float | None]
    problems: Mapping[str, str]
    passed: bool
    said: str

    @property
    def truncated(self) -> bool:
        """Whether it had no end."""
        return self.rollout.finish_reason != "stop"


@dataclass(frozen=True)
class Group:
    """The answers to a prompt.

    Attributes:
        prompt: text.
        expected: answer.
        where: file and line.
        answers: of the model.
    """

    prompt: str
    expected: str
    where: str
    answers: tuple[Scored, ...]

    @property
    def unfinished(self) -> int:
        """Answers that are gone on with; the others to the prompt wait for them."""
        return sum(answer.rollout.unfinished for answer in self.answers)

    @property
    def tells_apart(self) -> bool:
        """Whether its rewards differ."""
        return bool(self.answers) and bool(tells_apart(*_table([self])))

    @property
    def pass_rate(self) -> float | None:
        """The share of right answers among those that could be judged; None: of none."""
        judged = [answer.passed for answer in self.answers if answer.reward is not None]
        return sum(judged) / len(judged) if judged else None


def scored(
    asked: Sequence[Asked],
    answers: Sequence[Sequence[Rollout]],
    tokenizer: TextTokenizer,
    ends: frozenset[int],
    judging: Judging,
) -> list[Group]:
    """Judge the answers to prompts, once all of a prompt's are whole.

    Args:
        asked: the prompts.
        answers: to each.
        tokenizer: of the model.
        ends: tokens that end an answer, and are no part of its text.
        judging: rewards.
    """
    done = [
        number
        for number, of_prompt in enumerate(answers)
        if not any(rollout.unfinished for rollout in of_prompt)
    ]
    if len(done) < len(asked):
        judged = iter(
            scored(
                [asked[number] for number in done],
                [answers[number] for number in done],
                tokenizer,
                ends,
                judging,
            )
        )
        whole = {number: next(judged) for number in done}
        return [
            whole.get(number) or _waiting(one, of_prompt)
            for number, (one, of_prompt) in enumerate(zip(asked, answers, strict=True))
        ]
    attempts = [
        Attempt(
            prompt=one.text,
            text=_text(rollout, tokenizer, ends),
            expected=one.prompt.expected,
            opened=one.opened,
            row=one.prompt.row,
            tokens=len(rollout.tokens),
            truncated=rollout.finish_reason != "stop",
        )
        for one, of_prompt in zip(asked, answers, strict=True)
        for rollout in of_prompt
    ]
    names = [
        one.prompt.rewards for one, of_prompt in zip(asked, answers, strict=True) for _ in of_prompt
    ]
    verdicts = iter(zip(attempts, judging.judge(attempts, names), strict=True))
    groups = []
    for one, of_prompt in zip(asked, answers, strict=True):
        members = []
        for rollout in of_prompt:
            attempt, judged = next(verdicts)
            parts = {name: verdict.value for name, verdict in judged.parts.items()}
            right = parts[one.prompt.rewards[0]]
            members.append(
                Scored(
                    rollout=rollout,
                    text=attempt.text,
                    reward=judged.total,
                    parts=parts,
                    problems=judged.problems,
                    passed=right is not None and right >= 1,
                    said=conclusion(attempt),
                )
            )
        groups.append(Group(one.text, expected_of(one), one.prompt.where, tuple(members)))
    return groups


def expected_of(one: Asked) -> str:
    """What a prompt expects, as its group says it."""
    return "" if one.prompt.expected is None else str(one.prompt.expected)


def _waiting(one: Asked, answers: Sequence[Rollout]) -> Group:
    """Answers of which some have no end yet, and none is judged."""
    members = (Scored(rollout, "", None, {}, {}, False, "") for rollout in answers)
    return Group(one.text, expected_of(one), one.prompt.where, tuple(members))


def advantages(groups: Sequence[Group], scale: Scale) -> list[list[float]]:
    """How much better each answer is than the others to its prompt, 0 where it is not judged."""
    rewards, counted = _table(groups)
    found = advantages_of(rewards, scale, counted).tolist()
    return [row[: len(group.answers)] for row, group in zip(found, groups, strict=True)]


def _table(groups: Sequence[Group]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards `[prompts, n]`, and which of them there are; a group may have fewer answers."""
    n = max(len(group.answers) for group in groups)
    written = [
        [answer.reward for answer in group.answers] + [None] * (n - len(group.answers))
        for group in groups
    ]
    counted = torch.tensor([[reward is not None for reward in row] for row in written])
    rewards = torch.tensor([[reward or 0.0 for reward in row] for row in written]).double()
    return rewards, counted


def _text(rollout: Rollout, tokenizer: TextTokenizer, ends: frozenset[int]) -> str:
    tokens = rollout.tokens
    return tokenizer.decode(tokens[:-1] if tokens and tokens[-1] in ends else tokens)
