"""Connections with clients: how many there may be, and which of them are closed as idle."""

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_S = 60.0
"""In which a client has to have asked something; nginx, too, waits so long for a request's head."""


def most_connections() -> int:
    """Half of the files that the process may open, of which each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard // 2


def closing_idle(seconds: float) -> type[asyncio.Protocol]:
    """HTTP as uvicorn speaks it, with an end to connections that ask nothing.

    uvicorn closes a connection that is silent behind an answer, and none that is silent before the
    first request, or that sends the head of one byte by byte; as many of those as there may be
    connections would keep everybody else out.

    Args:
        seconds: a connection is closed in which no request began and none was under way for so
            long, and at the latest after twice that time.
    """

    class ClosingIdle(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._look_again()

        def connection_lost(self, exc: Exception | None) -> None:
            self._next_look.cancel()
            super().connection_lost(exc)

        def _look_again(self) -> None:
            self._seen = self.cycle
            self._next_look = self.loop.call_later(seconds, self._look)

        def _look(self) -> None:
            is_answering = self.cycle is not None and not self.cycle.response_complete
            if is_answering or self.cycle is not self._seen:
                self._look_again()
            else:
                self.transport.close()

    return ClosingIdle
