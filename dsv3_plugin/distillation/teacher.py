"""Who answers: a served model, or a checkpoint of ours."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from dsv3_plugin.rollouts.prompts import Prompt


@dataclass(frozen=True)
class Answered:
    """An answer to a problem.

    Attributes:
        text: what the model wrote.
        opened: what its template has begun the answer with.
        whole: it came to its end.
        refusal: why the teacher will not answer, however often it is asked.
        failure: why no answer came this time.
    """

    text: str = ""
    opened: str = ""
    whole: bool = True
    refusal: str = ""
    failure: str = ""


class Teacher(Protocol):
    """Answers problems."""

    def answers(
        self, problems: Sequence[Prompt], n: int
    ) -> Iterator[tuple[Prompt, list[Answered]]]:
        """n answers to each problem, as they come.

        Raises:
            UserError: it cannot answer at all.
        """
        ...


def seed_of(seed: int, problem: str, answer: int) -> int:
    """The seed of an answer: its own, whichever problems are asked beside it or before.

    31 bits, which every server takes.
    """
    digest = hashlib.blake2b(f"{seed} {problem} {answer}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1
