"""Needles in haystacks: a fact laid into real text, and asked for at its end. No torch here.

The form is that of a base model: the prompt ends with the beginning of the sentence that states the
fact, and the answer is right if the greedy continuation is the rest of that sentence, to the full
stop. The same question is asked of the same text without its needle, which only a guess can answer
(after G. Kamradt's pressure test of 2023, and the keys and values of RULER, arXiv 2404.06654).
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dsv3_plugin.errors import UserError
from dsv3_plugin.evaluation.facts import Fact, Kind, draw_facts, most_facts
from dsv3_plugin.evaluation.haystack import Haystack

Continue = Callable[[Sequence[int], int], list[int]]
"""Continues tokens: the likeliest next ones, at most so many."""


@dataclass(frozen=True)
class Setting:
    """What is asked.

    Attributes:
        lengths: tokens of haystack, facts, question and answer together.
        depths: of the needle, as shares of the haystack before it.
        kinds: of facts; each is asked for apart.
        needles: facts in a haystack, the one that is asked for among them.
        samples: questions of each kind at each length and depth.
        seed: of the facts, of the places of the others, and of where in the text a haystack begins.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    kinds: tuple[Kind, ...]
    needles: int = 1
    samples: int = 5
    seed: int = 0

    @property
    def questions(self) -> int:
        """How many there are, those without a needle included."""
        return len(self.kinds) * len(self.lengths) * self.samples * (len(self.depths) + 1)

    def check(self) -> None:
        """Raise UserError for what cannot be asked of any model."""
        for depth in self.depths:
            if not 0 <= depth <= 1:
                raise UserError(
                    f"a depth is the share of the haystack before the needle, from 0 to 1, and "
                    f"cannot be {depth:g}"
                )
        for length in self.lengths:
            if length < 1:
                raise UserError(f"a length is a number of tokens, and cannot be {length}")
        if not 1 <= self.needles <= most_facts():
            raise UserError(
                f"--needles is between 1 and {most_facts()}, the names there are, and cannot be "
                f"{self.needles}"
            )

    def refuse_beyond(self, longest: int) -> None:
        """Raise UserError if a length is more than a model's positions."""
        length = max(self.lengths)
        if length > longest:
            raise UserError(
                f"length {length:,} is beyond the model's {longest:,} positions "
                f"(max_position_embeddings): ask shorter ones, or see what it does there with "
                f"model.max_position_embeddings={length}"
            )


@dataclass(frozen=True)
class Asked:
    """One question and what the model said.

    Attributes:
        kind, length: of the question.
        depth: of its needle; None: it was asked without one.
        sample: which of the questions there.
        question: as the prompt ended.
        expected: its answer.
        said: the continuation.
    """

    kind: Kind
    length: int
    depth: float | None
    sample: int
    question: str
    expected: str
    said: str

    @property
    def is_right(self) -> bool:
        """Whether the continuation is the answer, to its full stop."""
        return self.said.strip().startswith(self.expected.strip())


@dataclass(frozen=True)
class Found:
    """All that was asked, and what was said."""

    setting: Setting
    asked: tuple[Asked, ...]

    def share(self, kind: Kind, length: int, depth: float | None) -> float:
        """The share of right answers of one kind, length and depth."""
        right = [
            one.is_right
            for one in self.asked
            if (one.kind, one.length, one.depth) == (kind, length, depth)
        ]
        return sum(right) / len(right)


@dataclass(frozen=True)
class _Sample:
    """Facts, and where they and their text are; the same at every length and depth."""

    asked_for: Fact
    others: tuple[tuple[float, Fact], ...]
    start: float

    @classmethod
    def drawn(cls, setting: Setting, kind: Kind, number: int) -> "_Sample":
        draw = random.Random(f"{setting.seed} {kind} {number}")
        asked_for, *others = draw_facts(setting.needles, [kind], "evaluation", draw)
        placed = tuple((draw.random(), fact) for fact in others)
        return cls(asked_for, placed, draw.random())

    def prompt(self, haystack: Haystack, length: int, depth: float | None) -> list[int]:
        """What the model is to continue, of so many tokens with the answer, at most."""
        placed = [*self.others]
        if depth is not None:
            placed.append((depth, self.asked_for))
        return haystack.prompt(
            self.start,
            length,
            [(where, fact.sentence) for where, fact in placed],
            self.asked_for.question,
            self.asked_for.answer,
        )

    def answer_tokens(self, haystack: Haystack) -> int:
        """How many tokens the answer is."""
        return len(haystack.coder.encode(self.asked_for.answer))


def find_needles(
    setting: Setting,
    haystack: Haystack,
    proceed: Continue,
    tell: Callable[[int], None] = lambda asked: None,
) -> Found:
    """Ask all questions.

    Args:
        setting: which.
        haystack: the text.
        proceed: the model.
        tell: called after each question with how many were asked.

    Raises:
        UserError: the facts and the question do not fit a length, or there is not text enough; all
            is looked at before the first question.
    """
    for kind in setting.kinds:
        for sample in _samples(setting, kind):
            for length in setting.lengths:
                sample.prompt(haystack, length, setting.depths[0])
    asked: list[Asked] = []
    for kind, length, depth, number, sample in _cases(setting):
        prompt = sample.prompt(haystack, length, depth)
        said = haystack.coder.decode(proceed(prompt, sample.answer_tokens(haystack)))
        fact = sample.asked_for
        asked.append(Asked(kind, length, depth, number, fact.question, fact.answer, said))
        tell(len(asked))
    return Found(setting, tuple(asked))


def _samples(setting: Setting, kind: Kind) -> list[_Sample]:
    return [_Sample.drawn(setting, kind, number) for number in range(setting.samples)]


def _cases(setting: Setting) -> Iterator[tuple[Kind, int, float | None, int, _Sample]]:
    """All questions in order: kind, length, depth (None: without the needle), sample."""
    for kind in setting.kinds:
        samples = _samples(setting, kind)
        for length in setting.lengths:
            for depth in (*setting.depths, None):
                for number, sample in enumerate(samples):
                    yield kind, length, depth, number, sample
