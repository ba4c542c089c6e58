"""What a client is told when there is no answer, and that the others have theirs."""

import contextlib
import json
import select
import shutil
import socket
import time
import urllib.error
import urllib.request

import openai
import psutil
import pytest

from dsv3_plugin.data.tokenizer import open_tokenizer
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.server.limits import Limits
from dsv3_plugin.inference.server.words import words_of
from tests.inference.server.serving import PATIENCE_S, listening, server_of


@pytest.fixture
def serving(model, tokenizer):
    """Starts a server with limits, and opens a client of it."""

    @contextlib.contextmanager
    def start(waiting=50, **limits):
        engine = Engine(model, EngineSettings(2**24), text_of=tokenizer.decode)
        server = server_of(engine, words_of(tokenizer), Limits(20_000, waiting, **limits))
        with (
            listening(server) as address,
            openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as client,
        ):
            yield client, address

    return start


def asked(**more):
    return {"model": "small", "prompt": "def", "max_tokens": 5, "temperature": 0} | more


def health(address):
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=PATIENCE_S) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def connected(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def test_a_failed_step_is_a_500_and_a_model_that_is_gone_a_503(serving, model):
    fails = {"next": 1}

    def look(_module, _arguments):
        if fails["next"]:
            fails["next"] -= 1
            raise RuntimeError("no more memory")

    with serving() as (client, address):
        handle = model.decoder.layers[0].input_layernorm.register_forward_pre_hook(look)
        try:
            with pytest.raises(openai.InternalServerError, match="failed while it made this"):
                client.completions.create(**asked())
            assert client.completions.create(**asked()).usage.completion_tokens == 5
            assert health(address) == 200
            fails["next"] = 1
            with pytest.raises(openai.APIError, match="failed while it made this"):
                list(client.completions.create(**asked(stream=True)))
            assert client.completions.create(**asked()).usage.completion_tokens == 5
            fails["next"] = 1000
            with pytest.raises(openai.InternalServerError, match="failed"):
                client.completions.create(**asked())
            until = time.monotonic() + PATIENCE_S
            while health(address) != 503:
                assert time.monotonic() < until
            with pytest.raises(openai.InternalServerError, match="has stopped") as stopped:
                client.completions.create(**asked())
            assert stopped.value.status_code == 503
        finally:
            handle.remove()


def test_a_request_has_its_time(serving):
    with serving(seconds=0.2) as (client, address):
        with pytest.raises(openai.APIStatusError, match=r"not whole after 0\.2 s") as late:
            client.completions.create(**asked(max_tokens=2000, n=20))
        assert late.value.status_code == 504
        with pytest.raises(openai.APIError, match=r"not whole after 0\.2 s"):
            list(client.completions.create(**asked(max_tokens=2000, n=20, stream=True)))
        with connected(address) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_client_has_so_many_requests_a_minute(serving):
    with serving(per_minute=2) as (client, address):
        for _ in range(2):
            client.completions.create(**asked())
        with pytest.raises(openai.RateLimitError, match="More than 2 requests in a minute") as more:
            client.completions.create(**asked())
        assert 1 <= int(more.value.response.headers["retry-after"]) <= 30
        assert health(address) == 200


def test_a_large_body_is_refused_before_it_is_read(serving):
    with serving() as (client, address):
        with connected(address) as large:
            large.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"
            )
            assert large.recv(1000).startswith(b"HTTP/1.1 413 ")
        assert client.completions.create(**asked()).usage.completion_tokens == 5


def test_a_large_body_of_no_length_is_refused_while_it_comes_and_not_kept(serving):
    with serving() as (client, address), connected(address) as large:
        large.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        megabyte = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
        before = psutil.Process().memory_info().rss
        for _ in range(100):
            large.sendall(megabyte)
        large.sendall(b"0\r\n\r\n")
        assert large.recv(1000).startswith(b"HTTP/1.1 413 ")
        assert psutil.Process().memory_info().rss < before + 50e6
        assert client.completions.create(**asked()).usage.completion_tokens == 5


def test_more_bodies_at_once_than_there_is_room_for_are_refused(serving):
    with serving(waiting=2) as (client, address), contextlib.ExitStack() as stack:
        body = json.dumps(asked(user="x" * 17_000)).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        slow = [stack.enter_context(connected(address)) for _ in range(3)]
        for one in slow:
            one.sendall(head + body[:-1])
        refused, *_ = select.select(slow, [], [], PATIENCE_S)
        for one in refused:
            said = one.recv(1000)
            while not said.endswith(b"}"):  # head and body may come apart
                said += one.recv(1000)
            assert said.startswith(b"HTTP/1.1 429 ")
            assert b"Too many bodies come in at once: ask again later." in said
        assert len(refused) == 1
        for one in set(slow) - set(refused):  # nothing is lost for the others
            one.sendall(body[-1:])
            assert one.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert client.completions.create(**asked()).usage.completion_tokens == 5


def test_a_tokenizer_without_a_template_says_so_where_it_is_asked_to_chat(
    tokenizer, tmp_path, model
):
    shutil.copytree(tokenizer.folder, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    plain = open_tokenizer(tmp_path / "plain")
    engine = Engine(model, EngineSettings(2**24), text_of=plain.decode)
    with listening(server_of(engine, words_of(plain), Limits(20_000, 50))) as address:
        body = {"model": "small", "messages": [{"role": "user", "content": "x"}]}
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", json.dumps(body).encode()
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=PATIENCE_S)
        assert refused.value.code == 400
        assert "has no chat template" in json.load(refused.value)["error"]["message"]
