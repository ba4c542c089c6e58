"""Rejection sampling: answers of a teacher, of which those are kept that a verifier accepts."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from dsv3_plugin.distillation.ledger import Ledger
from dsv3_plugin.distillation.samples import samples_of
from dsv3_plugin.distillation.teacher import Answered, Teacher
from dsv3_plugin.rewards.by_name import is_service, judge_of
from dsv3_plugin.rewards.verdict import Attempt, Judged, Weighted, judged
from dsv3_plugin.rollouts.prompts import Prompt
from dsv3_plugin.web import Patience


class NotJudged(Exception):
    """Answers could not be judged this time, and may be another."""


class Verifier:
    """Accepts answers by rewards; use as a context.

    Args:
        at_least: value of each reward of an answer that is accepted.
        seconds: an answer may take to be judged, by each.
        patience: with a reward model.
        key: of it.
    """

    def __init__(
        self, at_least: float, seconds: float, patience: Patience, key: str | None = None
    ) -> None:
        self._at_least, self._seconds = at_least, seconds
        self._patience, self._key = patience, key
        self._stack = ExitStack()
        self._known: dict[str, Weighted] = {}

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, name: str) -> None:
        """Begin what judges by a reward.

        Raises:
            UserError: there is none of that name.
        """
        if name not in self._known:
            judge = judge_of(name, self._seconds, self._stack, self._patience, self._key)
            self._known[name] = Weighted(name, judge)

    def problems(self, attempts: Sequence[Attempt], rewards: Sequence[str]) -> list[str]:
        """Why each attempt is not accepted; empty where it is.

        Raises:
            NotJudged: a reward model has judged none of them.
        """
        for name in rewards:
            self.open(name)
        found = judged(attempts, [self._known[name] for name in rewards]) if attempts else []
        for name in filter(is_service, rewards):
            parts = [one.parts[name] for one in found]
            if parts and all(part.value is None for part in parts):
                raise NotJudged(f"{name}: {parts[0].problem}")
        return [self._problem(one) for one in found]

    def _problem(self, one: Judged) -> str:
        for name, part in one.parts.items():
            if part.value is None:
                return f"not judged by {name}: {part.problem}"
            if part.value < self._at_least:
                return f"not accepted by {name}"
        return ""


@dataclass
class Unfinished:
    """Problems that had no answer this time, and why."""

    problems: int = 0
    failures: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Chosen:
    """What is kept of the answers to a problem.

    Attributes:
        responses: accepted.
        rejected: answers, by the reason.
    """

    responses: list[str]
    rejected: Counter[str]


def distil(
    problems: Sequence[Prompt],
    teacher: Teacher,
    n: int,
    verifier: Verifier,
    ledger: Ledger,
    system: str,
    done: Callable[[int, int], None],
) -> Unfinished:
    """Answer problems, and keep what is accepted.

    Args:
        problems: those that are finished are passed over.
        teacher: that answers.
        n: answers to each.
        verifier: that accepts.
        ledger: that keeps.
        system: prompt of the samples' second form.
        done: told how many problems are finished, and how many answers kept.

    Returns:
        What another start may finish.

    Raises:
        UserError: the teacher cannot answer any more. What is finished is kept.
    """
    unfinished = Unfinished()
    left = [problem for problem in problems if problem.key not in ledger.finished]
    finished = len(problems) - len(left)
    done(finished, ledger.counts["kept"])
    for problem, answers in teacher.answers(left, n):
        failures = [answer.failure for answer in answers if answer.failure]
        if failures:
            unfinished.problems += 1
            unfinished.failures.update(failures)
            continue
        try:
            chosen = choose(problem, answers, verifier)
        except NotJudged as error:
            unfinished.problems += 1
            unfinished.failures[str(error)] += n
            continue
        ledger.add(
            problem.key,
            samples_of(problem, chosen.responses, system),
            {"answers": n, "kept": len(chosen.responses), "rejected": chosen.rejected},
        )
        finished += 1
        done(finished, ledger.counts["kept"])
    return unfinished


def choose(problem: Prompt, answers: Sequence[Answered], verifier: Verifier) -> Chosen:
    """The answers that are whole, new and accepted.

    Raises:
        NotJudged: a reward model has judged none of them.
    """
    rejected: Counter[str] = Counter()
    whole: dict[str, Answered] = {}
    for answer in answers:
        response = (answer.opened + answer.text).strip()
        why = _unusable(answer, response) or ("the same again" if response in whole else "")
        if why:
            rejected[why] += 1
        else:
            whole[response] = answer
    asked = problem.conversation.messages[-1].get("content")
    attempts = [
        Attempt(str(asked), answer.text, problem.expected, answer.opened, problem.row)
        for answer in whole.values()
    ]
    kept = []
    for response, why in zip(whole, verifier.problems(attempts, problem.rewards), strict=True):
        if why:
            rejected[why] += 1
        else:
            kept.append(response)
    return Chosen(kept, rejected)


def _unusable(answer: Answered, response: str) -> str:
    """Why an answer need not be judged; empty where it may be."""
    if answer.refusal:
        return answer.refusal
    if not answer.whole:
        return "too long: it came to no end"
    if not response:
        return "empty"
    try:
        response.encode()
    except UnicodeEncodeError:
        return "not valid Unicode"
    return ""
