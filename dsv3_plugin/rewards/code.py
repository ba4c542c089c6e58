"""Whether a program does what its tests ask, run in a sandbox."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dsv3_plugin.rewards.sandbox import Limits, ran
from dsv3_plugin.rewards.verdict import Attempt

_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


def passes(attempt: Attempt, limits: Limits | None = None) -> float:
    """1 where the last fenced program of an answer passes all tests, else 0.

    What is expected is either Python that is run behind the program, assertions as in HumanEval and
    MBPP, or inputs with their outputs, `{"inputs": [...], "outputs": [...]}` as in APPS, which are
    compared line by line without blanks at their ends.

    Raises:
        ValueError: what is expected is neither.
        UserError: there is no sandbox here.
    """
    tests = [*_tests(attempt.expected)]
    programs = _FENCED.findall(attempt.text)
    if not programs:
        return 0.0
    for behind, given, wanted in tests:
        done = ran(f"{programs[-1]}\n{behind}", given, limits)
        if not done.passed or (wanted is not None and _lines(done.output) != _lines(wanted)):
            return 0.0
    return 1.0


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
