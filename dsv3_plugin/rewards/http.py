"""A reward by a model that somebody serves: attempts are posted to it, and it answers scores.

    POST ADDRESS {"samples": [{"prompt": "…", "response": "…", "answer": …}, …]}
    → {"scores": [0.5, 1.0, …]}, or the list alone

`answer` is what the prompt expects, null where it says nothing. A score of null is none.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Expired
from typing import Any

from dsv3_plugin.rewards.verdict import Attempt, Verdict
from dsv3_plugin.rewards.workers import checked
from dsv3_plugin.web import Patience, Unanswered, Web


class RewardModel:
    """A service that judges; use as a context, or call `close`.

    Args:
        address: where it is asked.
        key: sent as a bearer's.
        batch: attempts in a request at most. One that fails in the end is made again in halves,
            once each, so that what fails costs the attempts that it fails for.
        seconds: that judging takes at most, whatever the service does.
        patience: with a request.

    Raises:
        UserError: the address is none.
    """

    def __init__(
        self,
        address: str,
        *,
        key: str | None = None,
        batch: int = 32,
        seconds: float = 600.0,
        patience: Patience = Patience(),
    ) -> None:
        self._web = Web(address, key=key, patience=patience)
        self._batch, self._seconds = batch, seconds

    def __enter__(self) -> "RewardModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is under way."""
        self._web.close()

    @property
    def repeated(self) -> dict[str, int]:
        """How often requests failed and were made again, by the reason."""
        return dict(self._web.repeated)

    def judge(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """Its scores."""
        until = time.monotonic() + self._seconds
        verdicts: list[Verdict | None] = [None] * len(attempts)
        places = range(len(attempts))
        waiting, patient = [places[i : i + self._batch] for i in places[:: self._batch]], True
        while waiting:
            asked = [(some, self._ask([attempts[i] for i in some], patient)) for some in waiting]
            waiting, patient = [], False
            for some, future in asked:
                found = self._answered(future, len(some), until)
                if isinstance(found, _Failed) and found.halves and len(some) > 1:
                    half = len(some) // 2
                    waiting += [some[:half], some[half:]]
                    continue
                for place, verdict in zip(some, _each(found, len(some)), strict=True):
                    verdicts[place] = verdict
        return [verdict for verdict in verdicts if verdict is not None]

    def _ask(self, attempts: Sequence[Attempt], patient: bool) -> Future[Any]:
        samples = [
            {"prompt": a.prompt, "response": a.whole, "answer": a.expected} for a in attempts
        ]
        return self._web.post("", {"samples": samples}, patient=patient)

    def _answered(self, future: Future[Any], count: int, until: float) -> "list[Verdict] | _Failed":
        try:
            scores = future.result(max(until - time.monotonic(), 0))
        except Expired:
            future.cancel()
            return _Failed(f"was not judged within {self._seconds:g} s", halves=False)
        except Unanswered as error:
            return _Failed(f"the service {error.whole}", halves=not error.down)
        except Exception as error:  # what an attempt holds cannot be written as JSON
            return _Failed(f"{type(error).__name__}: {error}"[:200])
        if isinstance(scores, dict):
            scores = scores.get("scores")
        if not isinstance(scores, list):
            return _Failed("the service answered without a list of scores")
        if len(scores) != count:
            return _Failed("the service answered another number of scores")
        return [checked(score) for score in scores]


class _Failed:
    """A request without scores: why, and whether some of its attempts may have them."""

    def __init__(self, problem: str, *, halves: bool = True) -> None:
        self.problem, self.halves = problem, halves


def _each(found: "list[Verdict] | _Failed", count: int) -> list[Verdict]:
    return [Verdict(None, found.problem)] * count if isinstance(found, _Failed) else found
