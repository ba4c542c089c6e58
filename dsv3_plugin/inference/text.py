"""From an answer's tokens to its text, in pieces that can be shown at once."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

TextOf = Callable[[list[int]], str]
"""Text of token ids."""

_UNFINISHED = "\ufffd"
"""What decoding makes of a character of several bytes until its last token is there."""


class GrowingText:
    """The text of tokens as they come, at the cost of the last few of them.

    A tokenizer may write a token differently behind another one (SentencePiece's first space), and
    bytes of one character may lie in several tokens. So tokens are decoded behind those of the
    piece before, whose text is then taken off, and are a piece where no character is unfinished.

    Args:
        text_of: text of token ids.

    Attributes:
        text: of all tokens.
    """

    def __init__(self, text_of: TextOf) -> None:
        self.text = ""
        self._text_of = text_of
        self._before: list[int] = []
        self._piece: list[int] = []
        self._begin = 0  # of the piece, in the text

    @property
    def settled(self) -> str:
        """As much of it as stays whatever comes: up to the last whole character."""
        return self.text.rstrip(_UNFINISHED)

    def add(self, tokens: Sequence[int]) -> None:
        """Tokens that follow."""
        self._piece += tokens
        known = len(self._text_of(self._before)) if self._before else 0
        self.text = self.text[: self._begin] + self._text_of(self._before + self._piece)[known:]
        if len(self.text) > self._begin and not self.text.endswith(_UNFINISHED):
            self._before, self._piece = self._piece, []
            self._begin = len(self.text)


class StopStrings:
    """Looks for strings in a text that grows, from where they may begin.

    Args:
        strings: to be found.

    Attributes:
        found: where the first of them begins, once there is one.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.found: int | None = None
        self._strings = strings
        self._longest = max(map(len, strings), default=0)
        self._seen = 0

    def look(self, text: str) -> bool:
        """Whether one of them is in the text, which begins as it did the last time."""
        if self._strings and self.found is None:
            begin = max(0, self._seen - self._longest + 1)
            places = [place for s in self._strings if (place := text.find(s, begin)) >= 0]
            self.found = min(places, default=None)
            self._seen = len(text)
        return self.found is not None


class TextStream:
    """The text of an answer as it grows.

    Args:
        text_of: text of token ids.
        stop: strings that end the text, and are not part of it.
        stop_tokens: tokens that end it, likewise.
    """

    def __init__(
        self,
        text_of: TextOf,
        stop: Sequence[str] = (),
        stop_tokens: AbstractSet[int] = frozenset(),
    ) -> None:
        self._stop, self._stop_tokens = stop, stop_tokens
        self._growing, self._stops = GrowingText(text_of), StopStrings(stop)
        self._shown = 0

    def add(self, tokens: Sequence[int]) -> str:
        """What more can be shown with these: no half of a character, nothing that a stop string may
        turn out to begin with."""
        self._growing.add([token for token in tokens if token not in self._stop_tokens])
        text = self._growing.settled
        if self._stops.look(text):
            text = text[: self._stops.found]
        held = max((_overlap(text, end) for end in self._stop), default=0)
        return self._show(text[: len(text) - held])

    def end(self) -> str:
        """What was held back."""
        text = self._growing.text
        return self._show(text[: self._stops.found] if self._stops.look(text) else text)

    def _show(self, text: str) -> str:
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece


def _overlap(text: str, end: str) -> int:
    """Length of the longest end of a text that a stop string begins with."""
    longest = min(len(text), len(end) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(end[:n])), 0)
