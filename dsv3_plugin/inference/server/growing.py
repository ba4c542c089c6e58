"""Answers as they grow: to their end, or in pieces to a client that reads along."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse

from dsv3_plugin.inference.requests import Progress
from dsv3_plugin.inference.server.messages import Failed, Stopped
from dsv3_plugin.inference.server.refusals import Refusal, cut_short, refusal_of, told
from dsv3_plugin.inference.server.replies import Choice, Json, Replies

Grown = tuple[Choice, str, str, Progress]
"""A choice, what a step added to its thinking and to its text, and of which tokens."""


async def growing(
    arriving: AsyncIterator[tuple[int, Progress]],
    choices: list[Choice],
    n: int,
    seconds: float | None,
) -> AsyncIterator[Grown]:
    """The choices as they grow.

    Raises:
        Refusal: the time of one was over before it ended.
    """
    async for place, progress in arriving:
        completion = progress.completion
        if completion is not None and completion.finish_reason == "timeout":
            raise Refusal(504, f"The answer was not whole after {seconds:g} s: ask for less.")
        choice = choices[place * n + progress.number]
        thought, said = choice.add(progress.reports, completion)
        yield choice, thought, said, progress


async def to_the_end(growing: AsyncIterator[Grown]) -> None:
    """Until all have ended."""
    async for _ in growing:
        pass


async def pieces(
    growing: AsyncIterator[Grown], choices: list[Choice], replies: Replies, with_usage: bool
) -> AsyncIterator[str]:
    """Events of a stream, as the choices grow."""
    if replies.kind == "chat.completion":
        for choice in choices:
            yield _event(replies.first_piece(choice))
    try:
        async for choice, thought, said, progress in growing:
            yield _event(replies.piece(choice, thought, said, progress.reports))
    except (Stopped, Failed, Refusal) as error:
        yield _event(told(refusal_of(error)))
        return
    except asyncio.CancelledError:  # the server ends; or the client left, who does not hear it
        yield _event(told(cut_short()))
        return
    if with_usage:
        yield _event(replies.last_piece(choices))
    yield "data: [DONE]\n\n"


class Stream(StreamingResponse):
    """Server-sent events; whether they were read to the end or not, the rest is cancelled then."""

    def __init__(self, pieces: AsyncIterator[str], stack: contextlib.AsyncExitStack) -> None:
        super().__init__(pieces, media_type="text/event-stream")
        self._stack = stack

    async def __call__(self, *connection: Any) -> None:
        async with self._stack:
            with contextlib.suppress(asyncio.CancelledError):  # the server ends: the text is cut
                await super().__call__(*connection)


async def unless_left(request: Request, work: Awaitable[None]) -> None:
    """Do something unless the client goes away before it is done."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())  # behind the body nothing else can come
    try:
        await asyncio.wait([doing, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        await doing
    finally:
        doing.cancel()
        leaving.cancel()


def _event(said: Json) -> str:
    return f"data: {json.dumps(said)}\n\n"
