"""What is judged, and what comes of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Attempt:
    """An answer to a prompt.

    Attributes:
        prompt: text that was answered.
        opened: what the chat template has begun the answer with (`<think>` and a line's end, for
            example): it is a part of what is judged, and no part of what the model wrote.
        text: what the model wrote.
        expected: the prompt's reference answer; None where it has none.
        row: all keys of the prompt's row.
        tokens: of the answer.
        truncated: it had not come to its end.
    """

    prompt: str
    text: str
    expected: Any = None
    opened: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0
    truncated: bool = False

    @property
    def whole(self) -> str:
        """The answer with what the template has begun it with."""
        return self.opened + self.text

    @property
    def answer(self) -> str:
        """What is behind the thoughts; nothing where they have no end."""
        _, closes, after = self.text.rpartition("</think>")
        if closes:
            return after
        return "" if "<think>" in self.whole else self.text


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    value: of the answer; None where it could not be judged.
    problem: why not.
    """

    value: float | None
    problem: str = ""


Judge = Callable[[Sequence[Attempt]], list[Verdict]]
"""A reward: verdicts on attempts, in their order. It raises nothing and hangs nowhere."""


@dataclass(frozen=True)
class Weighted:
    """A reward in a sum of them.

    Attributes:
        name: under which it is counted.
        judge: the reward.
        weight: what its value is multiplied by.
        cap: bounds of its value before that.
    """

    name: str
    judge: Judge
    weight: float = 1.0
    cap: tuple[float, float] | None = None


@dataclass(frozen=True)
class Judged:
    """What the rewards made of an attempt.

    Attributes:
        total: the weighted sum; None where one of them could not judge, which costs the attempt.
        parts: each reward's verdict, by its name.
    """

    total: float | None
    parts: Mapping[str, Verdict]

    @property
    def problems(self) -> dict[str, str]:
        """Why rewards could not judge, by their names."""
        return {name: part.problem for name, part in self.parts.items() if part.value is None}


def judged(attempts: Sequence[Attempt], rewards: Sequence[Weighted]) -> list[Judged]:
    """Ask all rewards about all attempts."""
    by_reward = [_asked(reward, attempts) for reward in rewards]
    results = []
    for verdicts in zip(*by_reward, strict=True):
        parts = {reward.name: v for reward, v in zip(rewards, verdicts, strict=True)}
        total: float | None = 0.0
        for reward, verdict in zip(rewards, verdicts, strict=True):
            if verdict.value is None:
                total = None
                break
            value = verdict.value
            if reward.cap is not None:
                value = min(max(value, reward.cap[0]), reward.cap[1])
            total += reward.weight * value
        results.append(Judged(total, parts))
    return results


def _asked(reward: Weighted, attempts: Sequence[Attempt]) -> list[Verdict]:
    verdicts = reward.judge(attempts)
    assert len(verdicts) == len(attempts), f"{reward.name} has judged another number of attempts"
    return verdicts
