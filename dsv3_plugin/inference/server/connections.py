"""Connections with clients: how many are served at once, which are closed as idle, and what those
are told that are beyond the number or speak something else."""

import asyncio
import contextlib
import json
import resource
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from dsv3_plugin.inference.server.refusals import Refusal, reply, told

HEAD_S = 60.0
"""In which a client has to have asked something; nginx, too, waits so long for a request's head."""
_REFUSED_S = 5.0
"""The same for one that is beyond the number, and for the body that it sends."""
_NOT_HTTP = (
    "This is no request in HTTP/1.1, or its headers are too long: ask with a client of HTTP, at an "
    "address that begins with http://."
)


def most_connections() -> int:
    """Half of the files that the process may open, of which each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard // 2


def http_for(most: int, seconds: float) -> type[asyncio.Protocol]:
    """HTTP as uvicorn speaks it, for so many connections at once, none of which is idle for long.

    uvicorn's own limit refuses everybody as soon as it is reached, those as well that are connected
    already. It closes a connection that is silent behind an answer, and none that is silent before
    the first request, or that sends the head of one byte by byte.

    Args:
        most: connections that are served. Half as many more are told that there is no room, but of
            the server's health; those beyond are closed.
        seconds: a connection is closed in which no request began and none was under way for so
            long, and at the latest after twice that time.
    """
    served: set[asyncio.Protocol] = set()

    class Bounded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._served_app, self.app = self.app, self._answer
            self._has_room()
            self._look_again()
            if len(self.connections) > most + max(most // 2, 1):
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._next_look.cancel()
            served.discard(self)
            super().connection_lost(exc)

        def _has_room(self) -> bool:
            """Whether it is among those that are served, now or already."""
            if len(served) < most:
                served.add(self)
            return self in served

        async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
            if self._has_room() or scope["path"] == "/health":
                await self._served_app(scope, receive, send)
                return
            with contextlib.suppress(TimeoutError):  # a client that writes does not read yet
                async with asyncio.timeout(_REFUSED_S):
                    while (await receive()).get("more_body"):
                        pass
            refusal = Refusal(
                503,
                f"All of the {most} connections that the server has are taken: ask again later, or "
                "start it with more files that it may open (ulimit -n, two for a connection).",
                retry_after=1,
            )
            refusal.headers["Connection"] = "close"
            await reply(refusal)(scope, receive, send)

        def _look_again(self) -> None:
            self._seen = self.cycle
            wait = seconds if self in served else min(seconds, _REFUSED_S)
            self._next_look = self.loop.call_later(wait, self._look)

        def _look(self) -> None:
            is_answering = self.cycle is not None and not self.cycle.response_complete
            if is_answering or self.cycle is not self._seen:
                self._look_again()
            else:
                self.transport.close()

        def send_400_response(self, msg: str) -> None:
            """What came is not HTTP; between requests or within one that has no answer yet that can
            be said."""
            cycle = self.cycle
            if cycle is None or not (
                cycle.response_started and (cycle.more_body or not cycle.response_complete)
            ):
                body = json.dumps(told(Refusal(400, _NOT_HTTP))).encode()
                self.transport.write(
                    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
                )
            self.transport.close()

    return Bounded
