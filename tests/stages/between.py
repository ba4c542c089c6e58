"""Someone between a run and its server, who knows what was asked, and kills at the right moment."""

import asyncio
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.served import served

ASKED = "/v1/completions"
_BROKEN = 502


@contextmanager
def between(server: str, before: Callable[[list[str]], None]) -> Iterator[str]:
    """The address of one who hands on all requests to a server, as they come.

    Args:
        server: its address.
        before: is told the paths of all requests so far, the one that is about to be handed on as
            the last.
    """
    paths: list[str] = []

    def handed_on(request: Request, body: bytes) -> Response:
        paths.append(request.url.path)
        before(paths)
        kept = {
            name: value
            for name, value in request.headers.items()
            if name in ("authorization", "content-type")
        }
        asked = urllib.request.Request(
            server + request.url.path, body or None, kept, method=request.method
        )
        try:
            with urllib.request.urlopen(asked, timeout=300) as reply:
                return Response(reply.read(), reply.status, media_type="application/json")
        except urllib.error.HTTPError as error:
            return Response(error.read(), error.code)
        except OSError:
            return Response(status_code=_BROKEN)

    async def answer(request: Request) -> Response:
        return await asyncio.to_thread(handed_on, request, await request.body())

    routes = [Route("/{path:path}", answer, methods=["GET", "POST"])]
    with served(Starlette(routes=routes)) as address:
        yield address
