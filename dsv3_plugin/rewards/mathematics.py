"""Whether an answer is the expected one, as mathematics has it: 1/2 is 0.5 is \\frac{2}{4}."""

import re

from dsv3_plugin.rewards.verdict import Attempt

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|(?<!\\)[{}]")
"""What opens and closes; braces behind a backslash are signs of their own."""
SECONDS = 5
"""math-verify's own limit, of each of its two steps, in whole seconds."""


def accuracy(attempt: Attempt) -> float:
    """1 where the last box of an answer holds what is expected, else 0.

    Of several boxes math-verify makes a set, so the last one behind the thoughts is cut out first.
    An answer without a box is wrong: the prompt asks for one.

    Raises:
        ValueError: nothing is expected, or it is no mathematics. An error of the verifier is an
            error, and no 0.
    """
    from math_verify import parse, verify

    if attempt.expected is None:
        raise ValueError("the prompt has no answer to compare with")
    box = last_box(attempt.answer)
    if box is None:
        return 0.0
    limits = {"parsing_timeout": SECONDS, "raise_on_error": True}
    expected = parse(f"${attempt.expected}$", **limits)
    if not expected:
        raise ValueError(f"the expected answer {attempt.expected!r} is no mathematics")
    answered = parse(f"\\boxed{{{box}}}", **limits)
    return float(verify(expected, answered, timeout_seconds=SECONDS, raise_on_error=True))


def last_box(text: str) -> str | None:
    """What stands in the last `\\boxed{…}`, braces in it balanced; None without a whole one."""
    opened: list[tuple[int, bool]] = []
    last: tuple[int, int] | None = None
    for brace in _BRACES.finditer(text):
        if brace[0] != "}":
            opened.append((brace.end(), len(brace[0]) > 1))
        elif opened:
            begin, is_box = opened.pop()
            if is_box and (last is None or begin > last[0]):
                last = begin, brace.start()
    return None if last is None else text[slice(*last)]
