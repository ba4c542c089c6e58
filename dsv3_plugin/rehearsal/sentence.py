"""The sentence that matters of what somebody else's code says, which may go on for pages."""

import re

_LONGEST = 240
"""Characters: three lines of a terminal."""
_END = re.compile(r"(?<=[^\s.]{2})[.!?](?= [A-Z])")
"""Where a sentence ends: not behind an initial or within an ellipsis."""


def sentence_of(text: str) -> str:
    """The first sentence of a text on one line, without its full stop.

    What is short is left whole; what has no end within reach ends in an ellipsis.
    """
    line = " ".join(text.split()).rstrip(".")
    if len(line) <= _LONGEST:
        return line
    end = _END.search(line, endpos=_LONGEST)
    if end is not None:
        return line[: end.start()]
    return line[:_LONGEST].rpartition(" ")[0] + " …"
