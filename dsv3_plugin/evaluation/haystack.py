"""A haystack: tokens of real text with facts laid into it, of an exact length. No torch here."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from dsv3_plugin.errors import UserError


class Coder(Protocol):
    """What turns text into tokens and back."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, nothing added."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        ...


@dataclass(frozen=True)
class Haystack:
    """Real text as tokens.

    Attributes:
        name: what the text is, for sentences.
        tokens: of all of it.
        coder: whose tokens they are.
        begin: tokens that every text begins with.
    """

    name: str
    tokens: Sequence[int]
    coder: Coder
    begin: tuple[int, ...] = ()
    _newline: dict[int, bool] = field(default_factory=dict, repr=False, compare=False)

    def prompt(
        self,
        start: float,
        length: int,
        sentences: Iterable[tuple[float, str]],
        question: str,
        answer: str,
    ) -> list[int]:
        """Text with sentences in it, each a line of its own, and a question as the last line.

        Args:
            start: where its text begins, as a share of what may be before it.
            length: tokens at most, those of the answer included; a few less where a line ends just
                there.
            sentences: each with its depth, as a share of the text's tokens before it.
            question: the last line, without an end.
            answer: what is to continue it; it is not part of the prompt.

        Raises:
            UserError: all that has no place in the length, or there is not so much text.
        """
        lines = [(depth, sentence) for depth, sentence in sentences]
        # With a line's end before each of them, which is left out where there is one already.
        alone = [self.coder.encode(f"\n{text}\n") for _, text in lines]
        asked = [self.coder.encode(f"\n{question}"), self.coder.encode(answer)]
        room = length - sum(map(len, [self.begin, *alone, *asked]))
        if room < 0:
            raise UserError(
                f"{length} tokens are less than facts, question and answer alone, which are "
                f"{length - room}: ask longer texts, or fewer facts in them"
            )
        if room > len(self.tokens):
            raise UserError(
                f"{self.name} has {len(self.tokens):,} tokens, and {room:,} of real text are "
                "needed: name more text with --haystack (stdlib has a million and more)"
            )
        first = round(start * (len(self.tokens) - room))
        text = self.tokens[first : first + room]
        ends = [first_of - first for first_of in self._line_starts_in(first, first + room)]
        placed = sorted(
            ((_nearest(ends, depth * room), sentence) for depth, sentence in lines),
            key=lambda pair: pair[0],
        )
        tokens = list(self.begin)
        last = 0
        for place, sentence in placed:
            tokens += text[last:place]
            tokens += self._line(tokens, f"{sentence}\n")
            last = place
        tokens += text[last:]
        return tokens + self._line(tokens, question)

    def _line(self, before: Sequence[int], text: str) -> list[int]:
        """The tokens of a line that stands behind others, on a line of its own."""
        begins = len(before) == len(self.begin) or self._ends_line(before[-1])
        return self.coder.encode(text if begins else f"\n{text}")

    @cached_property
    def _line_starts(self) -> list[int]:
        """Where lines begin, the first apart."""
        return [place + 1 for place, token in enumerate(self.tokens) if self._ends_line(token)]

    def _line_starts_in(self, first: int, end: int) -> list[int]:
        starts = self._line_starts
        return [first, *starts[bisect_left(starts, first + 1) : bisect_left(starts, end)], end]

    def _ends_line(self, token: int) -> bool:
        if token not in self._newline:
            self._newline[token] = self.coder.decode([token]).endswith("\n")
        return self._newline[token]


def _nearest(places: Sequence[int], wanted: float) -> int:
    """The place nearest to a wanted one; of two as near the first."""
    after = bisect_left(places, wanted)
    around = places[max(after - 1, 0) : after + 1]
    return min(around, key=lambda place: abs(place - wanted))
