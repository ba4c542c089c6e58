"""What a round of answers was like, as the metrics tell it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from dsv3_plugin.rollouts.groups import Group, Scored
from dsv3_plugin.stages.unjudged import counted


@dataclass(frozen=True)
class Costs:
    """What answers cost beside their tokens.

    Attributes:
        seconds: until all answers were there, the weights' way to a server included.
        reward_seconds: that judging took.
        guessed, accepted: how often a first, second, … token was guessed ahead, and was the one.
        lost: answers that a server did not give.
        repeated: requests to it that were made again.
    """

    seconds: float = 0.0
    reward_seconds: float = 0.0
    guessed: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    lost: int = 0
    repeated: int = 0

    def __add__(self, other: "Costs") -> "Costs":
        """Of both: of those who judge beside each other."""
        return Costs(
            max(self.seconds, other.seconds),
            max(self.reward_seconds, other.reward_seconds),
            _added(self.guessed, other.guessed),
            _added(self.accepted, other.accepted),
            self.lost + other.lost,
            self.repeated + other.repeated,
        )

    def and_then(self, other: "Costs") -> "Costs":
        """Of one after the other."""
        return replace(
            self + other,
            seconds=self.seconds + other.seconds,
            reward_seconds=self.reward_seconds + other.reward_seconds,
        )


def _added(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    return tuple(map(sum, zip_longest(one, other, fillvalue=0)))


def numbers_of(
    drawn: Sequence[Group], trained: Sequence[Group], costs: Costs, made: int | None = None
) -> dict[str, float]:
    """Of a step's line.

    Args:
        drawn: all groups that were asked for.
        trained: those that are trained on.
        costs: of them.
        made: tokens that were made for them; None: all of theirs.
    """
    answers = _answers(drawn)
    lengths = [len(answer.rollout.tokens) for answer in answers]
    tokens = sum(lengths) if made is None else made
    numbers = {
        "rl/reward": _mean(answer.reward for answer in answers),
        **_by_part(answers),
        **_passed(drawn),
        "rl/groups_told_apart": _mean(group.tells_apart for group in drawn),
        "rl/groups": len(trained),
        "rl/unjudged": sum(answer.reward is None for answer in answers),
        "rl/answer_tokens": _mean(lengths),
        "rl/answer_tokens_max": max(lengths, default=0),
        "rl/truncated": _mean(answer.truncated for answer in answers),
        "rl/rollout_seconds": round(costs.seconds, 4),
        "rl/reward_seconds": round(costs.reward_seconds, 4),
        "rl/rollout_tokens_per_second": round(tokens / max(costs.seconds, 1e-4), 1),
    }
    numbers |= counted(drawn)
    if costs.lost or costs.repeated:
        numbers |= {"rl/lost": costs.lost, "rl/repeated": costs.repeated}
    guesses = zip(costs.guessed, costs.accepted, strict=True)
    for place, (guessed, accepted) in enumerate(guesses, start=1):
        numbers[f"rl/acceptance_{place}"] = accepted / max(guessed, 1)
    return numbers


def of_held_out(groups: Sequence[Group]) -> dict[str, float]:
    """What answers to prompts that are not trained on are worth."""
    answers = _answers(groups)
    return {"held_out_reward": _mean(answer.reward for answer in answers)} | {
        f"held_out_{name.removeprefix('rl/')}": value for name, value in _passed(groups).items()
    }


def _answers(groups: Sequence[Group]) -> list[Scored]:
    return [answer for group in groups for answer in group.answers]


def _passed(groups: Sequence[Group]) -> dict[str, float]:
    """Answers that are right, prompts with one that is, and prompts whose commonest one is."""
    n = max((len(group.answers) for group in groups), default=0)
    passed = {
        "rl/pass_at_1": _mean(answer.passed for answer in _answers(groups)),
    }
    if n > 1:
        passed[f"rl/pass_at_{n}"] = _mean(
            any(answer.passed for answer in group.answers) for group in groups
        )
        passed["rl/majority"] = _mean(map(_commonest_passed, groups))
    return passed


def _commonest_passed(group: Group) -> bool:
    """Whether the answer that was given most often is right; of several the first."""
    if not group.answers:
        return False
    [(said, _)] = Counter(answer.said for answer in group.answers).most_common(1)
    return next(answer.passed for answer in group.answers if answer.said == said)


def _by_part(answers: Sequence[Scored]) -> dict[str, float]:
    names = dict.fromkeys(name for answer in answers for name in answer.parts)
    return {
        f"rl/reward_{name}": _mean(answer.parts.get(name) for answer in answers) for name in names
    }


def _mean(values: Iterator[float | None] | Sequence[float | None]) -> float:
    """Of what there is; 0 of nothing."""
    there = [float(value) for value in values if value is not None]
    return sum(there) / max(len(there), 1)
