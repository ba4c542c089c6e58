"""Whether a program does what its tests ask, run in a sandbox."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dsv3_plugin.rewards.sandbox import Limits, ran
from dsv3_plugin.rewards.verdict import Attempt

_FENCE = "```"
SECONDS = 30.0
"""Of all tests of a program."""
_LANGUAGES = ("", "python", "py", "python3")


def passes(attempt: Attempt, limits: Limits | None = None, seconds: float = SECONDS) -> float:
    """1 where the last fenced program of an answer passes all tests, else 0.

    What is expected is either Python that is run behind the program, assertions as in HumanEval and
    MBPP, or inputs with their outputs, `{"inputs": [...], "outputs": [...]}` as in APPS, which are
    compared line by line without blanks at their ends. The latter are judged outside of the
    program's process, where nothing that it does to its own can pass for an answer.

    Args:
        attempt: what is judged.
        limits: of each test.
        seconds: of all of them; a worker has to have more.

    Raises:
        ValueError: what is expected is neither.
        UserError: there is no sandbox here.
    """
    limits = limits or Limits()
    tests = [*_tests(attempt.expected)]
    program = last_program(attempt.answer)
    if program is None:
        return 0.0
    until = time.monotonic() + seconds
    for behind, given, wanted in tests:
        left = until - time.monotonic()
        if left <= 0:
            return 0.0
        within = replace(limits, seconds=min(limits.seconds, left))
        done = ran(f"{program}\n{behind}", given, within)
        if not done.passed or (wanted is not None and _lines(done.output) != _lines(wanted)):
            return 0.0
    return 1.0


def last_program(text: str) -> str | None:
    """The last whole fenced block of Python, or of no language; None without one."""
    found: str | None = None
    inside: list[str] | None = None
    language = ""
    for line in text.splitlines():
        mark = line.strip()
        if inside is None:
            if mark.startswith(_FENCE):
                language, inside = mark.removeprefix(_FENCE).strip().lower(), []
        elif mark == _FENCE:
            found = "\n".join(inside) if language in _LANGUAGES else found
            inside = None
        else:
            inside.append(line)
    return found


def _tests(expected: Any) -> Iterator[tuple[str, str, str | None]]:
    """What to run behind a program, what it is given, what it has to print."""
    if isinstance(expected, str) and expected.strip():
        yield expected, "", None
    elif isinstance(expected, Mapping) and expected.get("inputs"):
        for given, wanted in zip(expected["inputs"], expected["outputs"], strict=True):
            yield "", str(given), str(wanted)
    else:
        raise ValueError("the prompt has no tests: neither assertions nor inputs and outputs")


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
