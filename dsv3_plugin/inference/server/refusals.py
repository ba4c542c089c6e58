"""Requests that are not served: a status, and a sentence in OpenAI's form of an error."""

import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.server.messages import Busy, Failed, Stopped


class Refusal(Exception):
    """A request that is not served, with its status and a sentence."""

    def __init__(self, status: int, sentence: str, retry_after: float | None = None) -> None:
        super().__init__(sentence)
        self.status = status
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
        case _:
            return Refusal(400, str(error))


def told(refusal: Refusal) -> dict[str, Any]:
    """The JSON of a refusal."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    error = {"message": str(refusal), "type": kind, "param": None, "code": refusal.status}
    return {"error": error}


def reply(refusal: Refusal) -> Response:
    """The reply that a refusal is."""
    return JSONResponse(told(refusal), refusal.status, refusal.headers)


async def unknown_route(_request: Request, error: HTTPException) -> Response:
    """What is not here, or not with this method."""
    return reply(Refusal(error.status_code, f"{error.detail}."))


async def fault(_request: Request, _error: Exception) -> Response:
    """A fault of the server's own, which the web server logs."""
    return reply(Refusal(500, "The server failed; its log says how."))
