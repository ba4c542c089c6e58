"""JSON over HTTP, asked with patience: what answers may be slow, broken, or down for a while.

Requests run in an event loop in a thread of its own. There each can be ended by the clock, whatever
it waits for; a limit of single reads is none for a service that sends a byte now and then.
"""

import json
import math
import random
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import Any

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

from dsv3_plugin.errors import UserError

MOST_BYTES = 2**28
"""Of an answer: 1,024 texts of 128K tokens at 2 bytes each; reports of a token take some 100."""
_SAID = 200
"""Characters of a refusal that are told."""
_REPEATED = (408, 409, 425, 429)
"""Statuses below 500 that mean: later."""


@dataclass(frozen=True)
class Patience:
    """How long is waited for a service.

    Attributes:
        attempt: seconds of an attempt, to the last byte of its answer.
        outage: seconds in which attempts that fail are repeated, of one request and of all
            together: a service that nobody has had an answer from for so long is asked once.
        first_wait: seconds before the second attempt; each later wait is twice as long.
        longest_wait: seconds.
    """

    attempt: float = 60.0
    outage: float = 120.0
    first_wait: float = 0.5
    longest_wait: float = 15.0


class Unanswered(Exception):
    """A request that has no answer in the end.

    Attributes:
        problem: why, in the same words whenever it is the same: it is counted by them.
        down: nobody listened.
        said: what the service said to it, shortened.
    """

    def __init__(self, problem: str, *, down: bool = False, said: str = "") -> None:
        super().__init__(problem)
        self.problem, self.down, self.said = problem, down, said

    @property
    def whole(self) -> str:
        """The problem, with what was said."""
        return f"{self.problem}: {self.said}" if self.said else self.problem


class Refused(Unanswered):
    """A service will not answer a request, however often it is asked.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"refused with status {status}", said=said)
        self.status = status


class _Later(Exception):
    """An attempt that failed and may be repeated."""

    def __init__(
        self, problem: str, *, wait: float = 0.0, down: bool = False, said: str = ""
    ) -> None:
        super().__init__(problem)
        self.problem, self.wait, self.down, self.said = problem, wait, down, said


class Web:
    """A service; use as a context, or call `close`.

    Args:
        address: that paths are appended to.
        key: sent as a bearer's.
        patience: with it.
        at_once: requests at most.
        most_bytes: of an answer.

    Attributes:
        repeated: how often attempts failed and were made again, by the reason.

    Raises:
        UserError: the address is none.
    """

    def __init__(
        self,
        address: str,
        *,
        key: str | None = None,
        patience: Patience,
        at_once: int = 64,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        refuse_address(address)
        self.address, self.patience = address.rstrip("/"), patience
        self.repeated: Counter[str] = Counter()
        self._failing_since: float | None = None
        self._at_once, self._most_bytes = at_once, most_bytes
        self._headers = {"content-type": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"
        self._stack = ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal(name="web"))
        self._portal.call(self._open)

    def __enter__(self) -> "Web":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is under way."""
        self._portal.call(self._close)
        self._portal.call(self._portal.stop, True)
        self._stack.close()

    def post(self, path: str, body: Any, *, patient: bool = True) -> Future[Any]:
        """Ask; what was answered, or `Unanswered`, is the future's.

        Args:
            path: behind the address.
            body: as JSON; bytes as they are.
            patient: whether attempts that fail are repeated.
        """
        return self._portal.start_task_soon(self._asked, "POST", path, body, patient)

    def get(self, path: str, *, patient: bool = True) -> Future[Any]:
        """The same without a body."""
        return self._portal.start_task_soon(self._asked, "GET", path, None, patient)

    async def _open(self) -> None:
        self._turns = anyio.Semaphore(self._at_once)
        limits = httpx2.Limits(max_connections=self._at_once)
        self._opened = AsyncExitStack()
        self._client = await self._opened.enter_async_context(
            httpx2.AsyncClient(headers=self._headers, limits=limits, timeout=None)
        )

    async def _close(self) -> None:
        await self._opened.aclose()

    async def _asked(self, method: str, path: str, body: Any, patient: bool) -> Any:
        failing, wait = None, self.patience.first_wait
        while True:
            async with self._turns:
                try:
                    answer = await self._attempt(method, path, body)
                    self._failing_since = None
                    return answer
                except Unanswered:  # but somebody is there
                    self._failing_since = None
                    raise
                except _Later as error:
                    failed = error
            now = time.monotonic()
            failing, self._failing_since = failing or now, self._failing_since or now
            pause = max(wait * random.uniform(0.5, 1.0), failed.wait)
            over = now + pause - min(failing, self._failing_since) > self.patience.outage
            if over or not patient:
                if over:  # until somebody answers
                    self._failing_since = -math.inf
                raise Unanswered(failed.problem, down=failed.down, said=failed.said)
            self.repeated[failed.problem] += 1
            await anyio.sleep(pause)
            wait = min(2 * wait, self.patience.longest_wait)

    async def _attempt(self, method: str, path: str, body: Any) -> Any:
        try:
            with anyio.fail_after(self.patience.attempt):
                status, headers, data = await self._exchange(method, path, body)
        except TimeoutError:
            raise _Later(f"took more than {self.patience.attempt:g} s") from None
        except httpx2.ConnectError:
            raise _Later("cannot be reached", down=True) from None
        except httpx2.TransportError:
            raise _Later("broke off its answer") from None
        except httpx2.DecodingError:
            raise Unanswered("answered with what cannot be decoded") from None
        if status >= 500 or status in _REPEATED:
            wait, said = self._wanted_wait(headers), _sentence(data)
            raise _Later(f"answered with status {status}", wait=wait, said=said)
        if not 200 <= status < 300:
            raise Refused(status, _sentence(data))
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise Unanswered("answered with what is no JSON") from None

    async def _exchange(
        self, method: str, path: str, body: Any
    ) -> tuple[int, httpx2.Headers, bytes]:
        parts, size = [], 0
        plain = isinstance(body, bytes)
        content = body if body is None or plain else json.dumps(body).encode()
        kind = {"content-type": "application/octet-stream"} if plain else None
        url = self.address + path
        async with self._client.stream(method, url, content=content, headers=kind) as response:
            async for part in response.aiter_bytes():
                size += len(part)
                if size > self._most_bytes:
                    raise Unanswered(f"answered with more than {self._most_bytes} bytes")
                parts.append(part)
            return response.status_code, response.headers, b"".join(parts)

    def _wanted_wait(self, headers: httpx2.Headers) -> float:
        """Seconds that the service asks to be left alone; a date is not looked at."""
        text = headers.get("retry-after", "")
        return min(float(text), self.patience.longest_wait) if text.isdecimal() else 0.0


def refuse_address(address: str) -> None:
    """Raise UserError unless a service can be asked at an address."""
    try:
        url = httpx2.URL(address)
    except httpx2.InvalidURL as error:
        raise UserError(f"'{address}' is no address: {error}.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"'{address}' is no address: write http://HOST:PORT or https://HOST.")


def _sentence(data: bytes) -> str:
    """What a refusal says: OpenAI's form of it, or its text."""
    text = data[: 4 * _SAID].decode(errors="replace")
    try:
        said = json.loads(data)
        text = said["error"]["message"]
    except (ValueError, RecursionError, KeyError, TypeError):
        pass
    return " ".join(str(text).split())[:_SAID]
