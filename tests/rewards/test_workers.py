"""What raises, hangs, dies or answers nonsense costs one attempt, and says so."""

import os
import signal
from collections.abc import Iterator

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.rewards.functions import named
from dsv3_plugin.rewards.mathematics import accuracy
from dsv3_plugin.rewards.verdict import Attempt
from dsv3_plugin.rewards.workers import Workers


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """One process, so that a test shows that it is there again after each."""
    with Workers(1, seconds=300) as workers:
        yield workers


def test_each_misfortune_is_an_attempts_own(workers: Workers) -> None:
    judge = workers.judge_by(named("tests.rewards.scores.by_text"))
    texts = ["0.5", "raise", "1", "die", "nan", "nonsense", "-2", "exit", "late"]
    verdicts = judge([Attempt("", text) for text in texts])
    assert [verdict.value for verdict in verdicts] == [
        0.5,
        None,
        1,
        None,
        None,
        None,
        -2,
        None,
        None,
    ]
    assert [verdict.problem for verdict in verdicts if verdict.value is None] == [
        "KeyError: 'no such key'",
        "its process died (exit code 3)",
        "answered nan, which is no number",
        "answered 'very good', which is no number",
        "SystemExit: 0",
        "TimeoutException: Operation timed out!",
    ]


def test_what_hangs_is_ended() -> None:
    with Workers(1, seconds=3) as workers:
        judge = workers.judge_by(named("tests.rewards.scores.by_text"))
        (verdict,) = judge([Attempt("", "hang")])
    assert verdict.value is None
    assert verdict.problem == "took more than 3 s"


def test_a_worker_that_is_killed_while_it_waits_is_begun_again() -> None:
    with Workers(1, seconds=300) as workers:
        judge = workers.judge_by(named("tests.rewards.scores.process"))
        (first,) = judge([Attempt("", "")])
        assert first.value is not None
        os.kill(int(first.value), signal.SIGKILL)
        while any(verdict.value is None for verdict in judge([Attempt("", "")])):
            pass
        (again,) = judge([Attempt("", "")])
        assert again.value != first.value


@pytest.mark.parametrize(
    ("expected", "text", "value"),
    [
        ("\\frac{1}{2}", "so it is \\boxed{0.5}.", 1),
        ("7", "\\boxed{3}, no, \\boxed{7}", 1),
        ("7", "\\boxed{7}, no, \\boxed{3}", 0),
        ("(x+1)^2", "\\boxed{x^{2}+2x+1}", 1),
        (10, "The answer is 10.", 0),
        (10, "\\boxed{10", 0),
        (10, "\\boxed{\\boxed{10} and more", 1),
        (10, "<think>\\boxed{10}</think>It is eleven.", 0),
        (10, "<think>\\boxed{9}</think>It is \\boxed{10}.", 1),
    ],
)
def test_mathematics_are_compared(
    workers: Workers, expected: object, text: str, value: int
) -> None:
    (verdict,) = workers.judge_by(accuracy)([Attempt("", text, expected)])
    assert (verdict.value, verdict.problem) == (value, "")


def test_without_an_answer_to_compare_with_nothing_is_wrong(workers: Workers) -> None:
    (verdict,) = workers.judge_by(accuracy)([Attempt("", "\\boxed{1}")])
    assert verdict.value is None
    assert verdict.problem == "ValueError: the prompt has no answer to compare with"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("tests.rewards.scores.none_such", "is not there"),
        ("no.such.module.function", "is not there: No module named 'no'"),
        ("tests.rewards.scores", "is no function"),
        ("accuracy", "is no function"),
    ],
)
def test_a_function_that_is_not_there_is_said_before_anything_is_judged(
    path: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        named(path)
