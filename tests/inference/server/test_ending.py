"""What clients are told whose answers are under way when a server ends."""

import asyncio
import contextlib
import json
from types import SimpleNamespace

from dsv3_plugin.inference.server.app import Server
from dsv3_plugin.inference.server.growing import Stream


async def _cancelled(work):
    """Its result, when it is cancelled as uvicorn does where its patience has ended."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    task.cancel()
    return await task


def test_an_answer_that_is_not_whole_is_refused_in_words():
    async def answer(_request):
        await asyncio.Event().wait()

    nobody_asked = SimpleNamespace(_require_key=lambda _request: None)
    reply = asyncio.run(_cancelled(Server._guarded(nobody_asked, answer)(None)))
    assert reply.status_code == 503
    assert json.loads(reply.body)["error"]["message"].startswith("The server is ending")


def test_a_stream_is_cut_and_its_answer_let_go():
    sent, let_go = [], []

    async def pieces():
        yield "data: 1\n\n"
        await asyncio.Event().wait()

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    stack = contextlib.AsyncExitStack()
    stack.callback(let_go.append, True)
    stream = Stream(pieces(), stack)
    scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
    asyncio.run(_cancelled(stream(scope, receive, send)))
    assert let_go == [True]
