"""What a round of answers was like, as the metrics tell it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

from dsv3_plugin.rollouts.groups import Group, Scored


class Asking(Protocol):
    """What the answers cost."""

    @property
    def reward_seconds(self) -> float: ...

    @property
    def acceptance(self) -> list[float]: ...


def numbers_of(
    drawn: Sequence[Group], trained: Sequence[Group], seconds: float, asking: Asking
) -> dict[str, float]:
    """Of a step's line.

    Args:
        drawn: all groups that were asked for.
        trained: those that are trained on.
        seconds: that the round took, with its rewards.
        asking: of whom.
    """
    answers = _answers(drawn)
    tokens = sum(len(answer.rollout.tokens) for answer in answers)
    generating = max(seconds - asking.reward_seconds, 1e-4)
    lengths = [len(answer.rollout.tokens) for answer in answers]
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
        "rl/rollout_seconds": round(generating, 4),
        "rl/reward_seconds": round(asking.reward_seconds, 4),
        "rl/rollout_tokens_per_second": round(tokens / generating, 1),
    }
    for place, share in enumerate(asking.acceptance, start=1):
        numbers[f"rl/acceptance_{place}"] = share
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
