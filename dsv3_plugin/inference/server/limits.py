"""What one request, one client, and all of them together may ask."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What may be asked.

    Attributes:
        body_bytes: of a request's body.
        waiting: answers that wait for their turn, and answers to one request; more that wait are
            refused for the moment.
        answer_tokens: of one answer; None: as many as the model has positions for.
        seconds: from a request's arrival to its end; None: no limit.
        per_minute: requests of one client; None: no limit.
    """

    body_bytes: int
    waiting: int
    answer_tokens: int | None = None
    seconds: float | None = None
    per_minute: int | None = None


_FEW = 1024
"""Clients that need not be looked through for such as have left."""


class Rate:
    """Lets so many requests of each client through in a minute, at once or one after another.

    The generic cell rate algorithm (ITU-T I.371): of each client a single number is kept, the time
    at which all that it has asked would have been asked at an even pace. A request is let through
    where that lies less than a minute ahead.

    Args:
        per_minute: requests.
        clock: seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace, self._clock = 60 / per_minute, clock
        self._even: dict[str, float] = {}
        self._look_at = _FEW

    def seconds_to_wait(self, client: str) -> float:
        """Until a client may ask again; 0 where it may now, and then it has."""
        now = self._clock()
        even = max(self._even.get(client, now), now) + self._pace
        if even - now > 60 + self._pace / 2:  # half a step, against the rounding of sums
            return even - now - 60
        self._forget_before(now)
        self._even[client] = even
        return 0.0

    def _forget_before(self, now: float) -> None:
        """Clients that have nothing to wait for, once there are twice as many as the last time."""
        if len(self._even) >= self._look_at:
            self._even = {client: even for client, even in self._even.items() if even > now}
            self._look_at = max(2 * len(self._even), _FEW)
