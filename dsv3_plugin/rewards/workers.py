"""Judging in processes of its own, so that what raises, hangs or dies costs one attempt.

math-verify bounds its time by an alarm, which works in a process's main thread alone: elsewhere it
raises, and a reward that takes this for a wrong answer says 0 to everything. Here each call has the
main thread of a worker, and a wall limit from outside that ends the worker where it does not help.
"""

import ctypes
import math
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Expired
from multiprocessing import get_context
from typing import Any

from pebble import ProcessExpired, ProcessPool

from dsv3_plugin.rewards.verdict import Attempt, Judge, Verdict

Score = Callable[[Attempt], Any]
"""A number for an attempt; importable by its name, since it is called in another process."""

_PR_SET_PDEATHSIG = 1


class Workers:
    """Processes that judge; use as a context, or call `close`.

    Args:
        processes: how many.
        seconds: an attempt may take.
    """

    def __init__(self, processes: int, seconds: float) -> None:
        self._processes = processes
        self.seconds = seconds
        self._pool = self._begin()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._pool.stop()
        self._pool.join()

    def judge_by(self, score: Score) -> Judge:
        """A reward by a function of one attempt."""

        def judge(attempts: Sequence[Attempt]) -> list[Verdict]:
            asked = [self._ask(score, attempt) for attempt in attempts]
            return [self._answered(future) for future in asked]

        return judge

    def _begin(self) -> ProcessPool:
        # Not forked: the trainer has threads, and locks that a copy would hold for ever.
        return ProcessPool(
            max_workers=self._processes, context=get_context("spawn"), initializer=_end_together
        )

    def _ask(self, score: Score, attempt: Attempt) -> Future[Verdict]:
        try:
            return self._schedule(score, attempt)
        except RuntimeError:  # a worker was killed while it had nothing to do, and with it the pool
            self.close()
            self._pool = self._begin()
            return self._schedule(score, attempt)

    def _schedule(self, score: Score, attempt: Attempt) -> Future[Verdict]:
        return self._pool.schedule(_judged, args=(score, attempt), timeout=self.seconds)

    def _answered(self, future: Future[Verdict]) -> Verdict:
        try:
            return future.result()
        except Expired:
            return Verdict(None, f"took more than {self.seconds:g} s")
        except ProcessExpired as error:
            return Verdict(None, f"its process died (exit code {error.exitcode})")
        except Exception as error:
            return _failed(error)


def _end_together() -> None:
    """Have a worker end with the process that began it, even where that is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _judged(score: Score, attempt: Attempt) -> Verdict:
    try:
        return checked(score(attempt))
    except (
        BaseException
    ) as error:  # math-verify's time limit is none of Exception's, nor is an exit
        return _failed(error)


def _failed(error: BaseException) -> Verdict:
    return Verdict(None, f"{type(error).__name__}: {error}"[:200])


def checked(value: Any) -> Verdict:
    """A verdict of what a reward has answered, which may be nonsense."""
    if not isinstance(value, str | bytes):
        try:
            number = float(value)  # numpy's and torch's too
        except (TypeError, ValueError, RuntimeError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return Verdict(number)
    return Verdict(None, f"answered {value!r:.80}, which is no number")
