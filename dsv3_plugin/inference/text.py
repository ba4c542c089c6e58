"""From an answer's tokens to its text, in pieces that can be shown at once."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

_UNFINISHED = "\ufffd"
"""What decoding makes of a character of several bytes until its last token is there."""


class TextStream:
    """The text of an answer as it grows.

    Args:
        text_of: text of token ids.
        stop: strings that end the text, and are not part of it.
        stop_tokens: tokens that end it, likewise.
    """

    def __init__(
        self,
        text_of: Callable[[list[int]], str],
        stop: Sequence[str] = (),
        stop_tokens: AbstractSet[int] = frozenset(),
    ) -> None:
        self._text_of = text_of
        self._stop, self._stop_tokens = stop, stop_tokens
        self._tokens: list[int] = []
        self._shown = 0

    @property
    def text(self) -> str:
        """All of it, up to a stop string."""
        text = self._text_of(self._tokens)
        ends = [place for end in self._stop if (place := text.find(end)) >= 0]
        return text[: min(ends)] if ends else text

    def add(self, tokens: Sequence[int]) -> str:
        """What more can be shown with these: no half of a character, nothing that a stop string may
        turn out to begin with."""
        self._tokens += [token for token in tokens if token not in self._stop_tokens]
        text = self.text.rstrip(_UNFINISHED)
        held = max((_overlap(text, end) for end in self._stop), default=0)
        return self._show(text[: len(text) - held])

    def end(self) -> str:
        """What was held back."""
        return self._show(self.text)

    def _show(self, text: str) -> str:
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece


def _overlap(text: str, end: str) -> int:
    """Length of the longest end of a text that a stop string begins with."""
    longest = min(len(text), len(end) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(end[:n])), 0)
