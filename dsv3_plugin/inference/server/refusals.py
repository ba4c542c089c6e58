"""Requests that are not served: a status, and a sentence in OpenAI's form of an error."""

import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.requests import WrongField
from dsv3_plugin.inference.server.messages import Busy, Failed, Stopped

_LONGEST_PATH = 100
"""Characters that are repeated of what somebody asked for."""


class Refusal(Exception):
    """A request that is not served, with its status, a sentence, and the field that it is about."""

    def __init__(
        self,
        status: int,
        sentence: str,
        retry_after: float | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status, self.field = status, field
        self.headers = {} if retry_after is None else {"Retry-After": f"{math.ceil(retry_after)}"}


def refusal_of(error: UserError | Busy | Failed | Stopped | Refusal) -> Refusal:
    """What a request is told that ends so."""
    match error:
        case Refusal():
            return error
        case Busy():
            return Refusal(429, "Too many answers are waited for already: ask again later.")
        case Failed():
            sentence = "The engine failed while it made this answer, as its log says: ask again."
            return Refusal(500, sentence)
        case Stopped():
            return Refusal(503, "The engine has stopped.")
        case WrongField():
            return Refusal(400, str(error), field=error.field)
        case _:
            return Refusal(400, str(error))


def cut_short() -> Refusal:
    """Of an answer that is under way when the server ends."""
    return Refusal(
        503, "The server is ending, before this answer is whole: ask again when it is back."
    )


def told(refusal: Refusal) -> dict[str, Any]:
    """The JSON of a refusal."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    about = {"param": refusal.field, "code": refusal.status}
    return {"error": {"message": str(refusal), "type": kind, **about}}


def reply(refusal: Refusal) -> Response:
    """The reply that a refusal is."""
    return JSONResponse(told(refusal), refusal.status, refusal.headers)


async def unknown_route(request: Request, error: HTTPException) -> Response:
    """What is not here, or not with this method."""
    asked = request.url.path[:_LONGEST_PATH]
    if error.status_code == 405:
        taken = (error.headers or {}).get("Allow", "another method")
        refusal = Refusal(405, f"{asked} does not take {request.method}: ask it with {taken}.")
        refusal.headers |= error.headers or {}
        return reply(refusal)
    there = ", ".join(route.path for route in request.app.routes if "{" not in route.path)
    return reply(Refusal(error.status_code, f"There is no {asked} here: there are {there}."))


async def fault(_request: Request, _error: Exception) -> Response:
    """A fault of the server's own, which the web server logs."""
    return reply(Refusal(500, "The server failed; its log says how."))
