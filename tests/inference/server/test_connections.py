"""Connections that ask nothing are closed; those that wait for an answer are not."""

import asyncio

import pytest
import uvicorn

from dsv3_plugin.inference.server.connections import closing_idle

ASKING = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.fixture(autouse=True)
def logging_left_alone(monkeypatch):
    monkeypatch.setattr(uvicorn.Config, "configure_logging", lambda _: None)


def connected(talk, seconds: float):
    """What comes of a talk with a server that answers when `talk` says so, on its own loop."""

    async def alone():
        may_answer = asyncio.Event()

        async def application(scope, receive, send):
            await may_answer.wait()
            headers = [(b"content-length", b"2")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"ok"})

        protocol = closing_idle(seconds)
        # Longer than anybody waits here, so that only what is tested closes anything.
        config = uvicorn.Config(application, lifespan="off", timeout_keep_alive=3600)
        config.load()
        state = uvicorn.server.ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            try:
                return await talk(reader, writer, may_answer)
            finally:
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
