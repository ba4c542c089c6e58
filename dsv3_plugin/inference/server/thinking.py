"""An answer's thinking apart from what it says, as it grows: `<think>…</think>` and the rest."""

OPENS, CLOSES = "<think>", "</think>"


class Thinking:
    """Splits the pieces of an answer.

    Args:
        opened: whether the prompt ends within the thinking, as templates that open it do.
    """

    def __init__(self, opened: bool) -> None:
        self._state = "thinking" if opened else "begin"
        self._held = ""

    @classmethod
    def behind(cls, prompt: str) -> "Thinking":
        """Of an answer to this prompt."""
        return cls(prompt.rstrip().endswith(OPENS))

    def add(self, piece: str) -> tuple[str, str]:
        """What a piece adds to the thinking and to the answer; what may be part of a mark waits."""
        self._held += piece
        if self._state == "begin":
            start = self._held.lstrip()
            if start.startswith(OPENS):
                self._state, self._held = "thinking", start.removeprefix(OPENS)
            elif OPENS.startswith(start):
                return "", ""
            else:
                self._state = "answer"
        thought = ""
        if self._state == "thinking":
            thought, closed, rest = self._held.partition(CLOSES)
            if not closed:
                waits = _begun(thought)
                self._held = thought[len(thought) - waits :]
                return thought[: len(thought) - waits], ""
            self._state, self._held = "gap", rest
        if self._state == "gap":  # lines that templates leave empty between the two
            self._held = self._held.lstrip("\n")
            self._state = "answer" if self._held else "gap"
        said, self._held = self._held, ""
        return thought, said

    def end(self) -> tuple[str, str]:
        """What waited for more that did not come."""
        held, self._held = self._held, ""
        return (held, "") if self._state == "thinking" else ("", held)


def _begun(text: str) -> int:
    """How many characters at the end of a text may be the beginning of the closing mark."""
    longest = min(len(text), len(CLOSES) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(CLOSES[:n])), 0)
