"""Connections that ask nothing are closed, those that wait for an answer are not; beyond a number
of them only the others are refused."""

import asyncio
import json

import pytest
import uvicorn

from dsv3_plugin.inference.server.connections import http_for

ASKING = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.fixture(autouse=True)
def logging_left_alone(monkeypatch):
    monkeypatch.setattr(uvicorn.Config, "configure_logging", lambda _: None)


def connected(talk, seconds: float, most: int = 10):
    """What comes of a talk with a server that answers when `talk` says so, on its own loop."""

    async def one(open_connection, may_answer):
        return await talk(*await open_connection(), may_answer)

    return serving(one, seconds, most)


def serving(talk, seconds: float, most: int):
    """The same of a talk that opens its connections itself."""

    async def alone():
        may_answer = asyncio.Event()

        async def application(scope, receive, send):
            await may_answer.wait()
            headers = [(b"content-length", b"2")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"ok"})

        protocol = http_for(most, seconds)
        # Longer than anybody waits here, so that only what is tested closes anything.
        config = uvicorn.Config(application, lifespan="off", timeout_keep_alive=3600)
        config.load()
        state = uvicorn.server.ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        opened = []

        async def open_connection():
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            opened.append(writer)
            return reader, writer

        async with server:
            try:
                return await asyncio.wait_for(talk(open_connection, may_answer), 300)
            finally:
                for writer in opened:
                    writer.close()

    return asyncio.run(alone())


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHo", ASKING])
def test_a_connection_in_which_nothing_is_asked_is_closed(sent):
    async def talk(reader, writer, may_answer):
        may_answer.set()
        writer.write(sent)
        return await asyncio.wait_for(reader.read(), 300)

    answer = connected(talk, seconds=0.05)
    assert answer.endswith(b"ok") if sent == ASKING else answer == b""


def test_a_connection_that_waits_for_its_answer_is_left_open():
    async def talk(reader, writer, may_answer):
        writer.write(ASKING)
        for _ in range(20):  # many times as long as an idle one would have
            await asyncio.sleep(0.05)
            assert not reader.at_eof()
        may_answer.set()
        return await asyncio.wait_for(reader.readuntil(b"ok"), 300)

    assert connected(talk, seconds=0.02).startswith(b"HTTP/1.1 200")


async def answer(reader, writer, asking=ASKING):
    """Status, headers and body."""
    writer.write(asking)
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines if line)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(first.split()[1]), headers, body


def sentence(body):
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


def test_beyond_the_number_only_the_others_are_refused():
    large = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000

    async def talk(open_connection, may_answer):
        first, second = [await open_connection() for _ in range(2)]
        waiting = asyncio.ensure_future(answer(*first))
        await asyncio.sleep(0)
        for asking in (ASKING, large):
            beyond = await open_connection()
            status, headers, body = await answer(*beyond, asking)
            assert (status, headers["content-type"]) == (503, "application/json")
            assert headers["retry-after"] == "1"
            assert "All of the 2 connections" in sentence(body)
            assert await beyond[0].read() == b""  # it is closed, and makes room
        may_answer.set()
        assert (await waiting)[0] == 200
        for connection in (first, second, first):
            assert (await answer(*connection))[0] == 200
        asks_health = await open_connection()
        health = ASKING.replace(b"/ ", b"/health ", 1)
        assert (await answer(*asks_health, health))[::2] == (200, b"ok")
        assert (await answer(*asks_health))[0] == 503
        late = await open_connection()
        second[1].close()
        await second[1].wait_closed()
        await asyncio.sleep(0.01)
        assert (await answer(*late))[0] == 200

    serving(talk, 300, most=2)


def test_no_number_of_connections_keeps_those_from_their_answers_that_came_before():
    async def talk(open_connection, may_answer):
        first = await open_connection()
        crowd = [await open_connection() for _ in range(200)]
        closed = [asyncio.ensure_future(reader.read()) for reader, _ in crowd]
        await asyncio.wait(closed, return_when=asyncio.FIRST_COMPLETED)
        may_answer.set()
        assert (await answer(*first))[0] == 200
        while (still_open := sum(not one.done() for one in closed)) > 14:
            await asyncio.sleep(0.01)
        assert still_open == 14  # nine that are served with the first, and half of ten
        for one in closed:
            one.cancel()

    serving(talk, 300, most=10)


@pytest.mark.parametrize(
    "sent", [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000]
)
def test_what_is_not_http_is_told_so(sent):
    async def talk(reader, writer, _):
        status, headers, body = await answer(reader, writer, sent)
        assert (status, headers["content-type"]) == (400, "application/json")
        assert sentence(body).startswith("This is no request in HTTP/1.1, or its headers are too")
        assert await reader.read() == b""

    connected(talk, 300)


def test_what_is_not_http_behind_an_answer_to_it_is_not_answered_again():
    """An application that has refused a body before its end."""

    async def talk(reader, writer, may_answer):
        may_answer.set()
        chunked = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert (await answer(reader, writer, chunked))[0] == 200
        writer.write(b"no length\r\n")
        assert await reader.read() == b""

    connected(talk, 300)
