"""Rounds whose answers have no end, in words."""

from collections.abc import Sequence

from dsv3_plugin.rollouts.groups import Group

_ROUNDS = 10
_MANY = 0.5


class Unended:
    """Tells once when for long half of the answers or more were cut at their longest."""

    def __init__(self) -> None:
        self.rounds = 0

    def sentence(self, groups: Sequence[Group], longest: int) -> str | None:
        """Of a round, if it is the tenth like that in a row.

        Args:
            groups: all of it.
            longest: tokens of an answer.
        """
        answers = [answer for group in groups for answer in group.answers]
        cut = sum(answer.truncated for answer in answers)
        self.rounds = self.rounds + 1 if answers and cut / len(answers) >= _MANY else 0
        if self.rounds != _ROUNDS:
            return None
        return (
            f"For {_ROUNDS} rounds half of the answers or more had no end within "
            f"rollouts.max_tokens {longest:,} (now {cut:,} of {len(answers):,}): raise that, make "
            f"long answers dear by the reward length, or look whether the chat template has them "
            f"end"
        )
