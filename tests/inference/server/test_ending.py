"""What clients are told whose answers are under way when a server ends."""

import asyncio
import contextlib
import json
import logging
import signal
from types import SimpleNamespace

import pytest
import uvicorn

from dsv3_plugin.inference.server import serve
from dsv3_plugin.inference.server.app import Server
from dsv3_plugin.inference.server.growing import Stream, pieces


async def _cancelled(work, after=0):
    """Its result, when it is cancelled as uvicorn does where its patience has ended."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(after)
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


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_who_reads_along_is_told_that_the_server_ends(version):
    sent = []

    async def nothing_more():
        await asyncio.Event().wait()
        yield

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    replies = SimpleNamespace(kind="text_completion")
    stream = Stream(pieces(nothing_more(), [], replies, False), contextlib.AsyncExitStack())
    scope = {"type": "http", "asgi": {"spec_version": version}}
    asyncio.run(_cancelled(stream(scope, receive, send), after=0.05))
    _begin, event, end = sent
    said = json.loads(event["body"].removeprefix(b"data: "))["error"]
    assert (said["code"], said["message"][:20]) == (503, "The server is ending")
    assert not end["more_body"]


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        (0, ""),
        (2, "ending: 2 requests under way, waited for up to 25 s; Ctrl-C once more ends at once."),
    ],
)
def test_what_is_waited_for_is_said_at_once(capsys, requests, said):
    async def ended():
        server = serve._Uvicorn(uvicorn.Config(None, log_config=None))
        server.servers, server.force_exit = [], True
        server.server_state.tasks |= set(range(requests))
        await server.shutdown()

    asyncio.run(ended())
    assert capsys.readouterr().err.strip() == said


def test_a_second_interruption_cuts_short_what_is_under_way():
    async def ended():
        server = serve._Uvicorn(uvicorn.Config(None, log_config=None))
        server.servers, server.lifespan = [], SimpleNamespace(shutdown=lambda: asyncio.sleep(0))
        answer = asyncio.create_task(asyncio.Event().wait())
        server.server_state.tasks.add(answer)
        answer.add_done_callback(server.server_state.tasks.discard)
        for _ in range(2):
            server.handle_exit(signal.SIGINT, None)
        await server.shutdown()
        return answer.cancelled()

    assert asyncio.run(ended())


@pytest.mark.parametrize(
    ("line", "is_said"),
    [
        ("Cancel 2 running task(s), timeout graceful shutdown exceeded", False),
        ("ASGI callable returned without completing response.", False),
        ("Exception in ASGI application", True),
    ],
)
def test_the_web_servers_own_lines_on_its_end_are_not_said(line, is_said):
    record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, line, (), None)
    assert serve.is_not_of_the_end(record) is is_said
