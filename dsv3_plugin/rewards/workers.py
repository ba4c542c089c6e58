"""Judging in processes of its own, so that what raises, hangs or dies costs one attempt.

math-verify bounds its time by an alarm, which works in a process's main thread alone: elsewhere it
raises, and a reward that takes this for a wrong answer says 0 to everything. Here each call has the
main thread of a worker, and a wall limit from outside that ends the worker where it does not help.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as Expired
from multiprocessing import get_context
from typing import Any

from pebble import ProcessExpired, ProcessPool

from dsv3_plugin.rewards.verdict import Attempt, Judge, Verdict

Score = Callable[[Attempt], Any]
"""A number for an attempt; importable by its name, since it is called in another process."""


class Workers:
    """Processes that judge; use as a context, or call `close`.

    Args:
        processes: how many.
        seconds: an attempt may take.
    """

    def __init__(self, processes: int, seconds: float) -> None:
        # Not forked: the trainer has threads, and locks that a copy would hold for ever.
        self._pool = ProcessPool(max_workers=processes, context=get_context("spawn"))
        self.seconds = seconds

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
            asked = [
                self._pool.schedule(score, args=(attempt,), timeout=self.seconds)
                for attempt in attempts
            ]
            return [self._answered(future) for future in asked]

        return judge

    def _answered(self, future: Any) -> Verdict:
        try:
            return checked(future.result())
        except Expired:
            return Verdict(None, f"took more than {self.seconds:g} s")
        except ProcessExpired as error:
            return Verdict(None, f"its process died (exit code {error.exitcode})")
        except Exception as error:
            return Verdict(None, f"{type(error).__name__}: {error}"[:200])


def checked(value: Any) -> Verdict:
    """A verdict of what a reward has answered, which may be nonsense."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return Verdict(float(value))
    return Verdict(None, f"answered {value!r:.80}, which is no number")
