"""Answers that no reward could be had for, in words."""

from collections import Counter
from collections.abc import Sequence

from dsv3_plugin.rollouts.groups import Group

_REASONS = 3
"""That a sentence has."""


class Unjudged:
    """Tells of answers without a reward: why, once for each reason."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def sentence(self, groups: Sequence[Group]) -> str | None:
        """Of a round, where some could not be judged for a reason that was not told before.

        Args:
            groups: all of it.
        """
        answers = [answer for group in groups for answer in group.answers]
        found: dict[tuple[str, str], list[str]] = {}
        for answer in answers:
            for name, problem in answer.problems.items():
                found.setdefault((name, problem.partition(":")[0]), []).append(problem)
        if found.keys() <= self._told:
            return None
        self._told |= found.keys()
        lost = sum(answer.reward is None for answer in answers)
        kinds = sorted(found.items(), key=lambda kind: -len(kind[1]))
        told = [f"{len(all_):,} by {name} ({all_[0]})" for (name, _), all_ in kinds[:_REASONS]]
        if others := sum(len(all_) for _, all_ in kinds[_REASONS:]):
            told.append(f"{others:,} for other reasons")
        return (
            f"{lost:,} of {len(answers):,} answers could not be judged, and are not learned from: "
            f"{', '.join(told)}."
        )


def counted(groups: Sequence[Group]) -> dict[str, int]:
    """How many of a round each reward could not judge, by the metrics' names; none of none."""
    problems = (answer.problems for group in groups for answer in group.answers)
    found = Counter(name for each in problems for name in each)
    return {f"rl/unjudged_{name}": count for name, count in found.items()}
