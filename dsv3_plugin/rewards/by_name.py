"""Rewards by the names that people give them."""

import os
from contextlib import ExitStack
from functools import partial

from dsv3_plugin.rewards import code, forms, functions, mathematics, sandbox
from dsv3_plugin.rewards.http import RewardModel
from dsv3_plugin.rewards.verdict import Judge
from dsv3_plugin.rewards.workers import Workers
from dsv3_plugin.web import Patience

COMPARING = ("accuracy", "match", "code")
"""Those that compare an answer with what its prompt expects."""
NAMES = (*COMPARING, "format")
"""All but functions and services, which are named by path and address."""

_MOST_PROCESSES = 8
_SECONDS = 15.0
"""For an attempt, where nobody says otherwise."""
_AROUND_TESTS = 15.0
"""Seconds that a worker has beyond those of a program's tests: what is not their fault is not
judged."""


def is_service(name: str) -> bool:
    """Whether a reward is the address of a reward model."""
    return "://" in name


def judge_of(
    name: str,
    seconds: float | None,
    stack: ExitStack,
    patience: Patience = Patience(),
    key: str | None = None,
) -> Judge:
    """A reward.

    Args:
        name: `accuracy` (mathematics in the last box), `match` (the text of the answer), `code`
            (tests in a sandbox), `format` (thoughts and answer in tags), the dotted path of a
            function of an attempt, or the address of a reward model.
        seconds: an attempt may take, or with `code` its tests; None: 15, and 30.
        stack: ends what judges.
        patience: with a reward model.
        key: of it.

    Raises:
        UserError: there is none of that name, or no sandbox for code.
    """
    if name == "format":
        return forms.tags
    if name == "match":
        return forms.match
    if is_service(name):
        return stack.enter_context(RewardModel(name, key=key, patience=patience)).judge
    match name:
        case "accuracy":
            score = mathematics.accuracy
        case "code":
            sandbox.check()  # where there is none, that is said at once
            tests = code.SECONDS if seconds is None else seconds
            score, seconds = partial(code.passes, seconds=tests), tests + _AROUND_TESTS
        case _:
            score = functions.named(name)
    processes = min(_MOST_PROCESSES, len(os.sched_getaffinity(0)))
    return stack.enter_context(Workers(processes, seconds or _SECONDS)).judge_by(score)
