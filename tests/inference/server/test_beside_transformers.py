"""The server beside `transformers serve`, on the same weights: greedy tokens, and the shape of
answers. What that server leaves out (log-probabilities, echo, n) is held against a forward pass in
`test_app`."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import openai
import pytest

from dsv3_plugin.checkpoint import import_hf
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.data.tokenizer import open_tokenizer
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.server.limits import Limits
from dsv3_plugin.inference.server.words import words_of
from tests.inference.server.serving import PATIENCE_S, listening, server_of
from tests.inference.test_from_checkpoint import write_hf_folder

pytestmark = [
    pytest.mark.harness,
    pytest.mark.skipif(
        find_spec("fastapi") is None,
        reason="transformers serve needs fastapi: `make test-harness` makes a place for it",
    ),
]
SERVE = "from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    write_hf_folder(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder, tmp_path_factory):
    """A client of `transformers serve`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    hub = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path_factory.mktemp("hub"))}
    where = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    command = [sys.executable, "-c", SERVE, "serve", str(folder), *where]
    with subprocess.Popen(command, env=os.environ | hub) as process:
        try:
            until = time.monotonic() + PATIENCE_S
            while not _is_up(port):
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.2)
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any")
        finally:
            process.kill()


def _is_up(port):
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200
    return False


@pytest.fixture(scope="module")
def ours(folder, world, tmp_path_factory):
    """A client of ours."""
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "whole"
    import_hf(folder, checkpoint)
    model, _ = load_for_inference(checkpoint)
    tokenizer = open_tokenizer(folder)
    engine = Engine(model, EngineSettings(2**22), text_of=tokenizer.decode)
    server = server_of(engine, words_of(tokenizer), Limits(20_000, 50), name=str(folder))
    with listening(server) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="any")


def shape(answer):
    """Names of fields that are set, at all depths."""
    if isinstance(answer, dict):
        return {name: shape(value) for name, value in answer.items() if value is not None}
    return [shape(answer[0])] if isinstance(answer, list) and answer else type(answer).__name__


def fields(answer, aside=frozenset({"system_fingerprint"})):
    """Its shape, without what one of the two has alone."""
    return {n: v for n, v in shape(answer.model_dump()).items() if n not in aside}


@pytest.mark.parametrize("prompt", ["def f(x", "return", "x\n    return x\ndef"])
def test_greedy_completions(ours, theirs, folder, prompt):
    asked = {"model": str(folder), "prompt": prompt, "max_tokens": 20, "temperature": 0}
    mine, other = (client.completions.create(**asked) for client in (ours, theirs))
    assert mine.choices[0].text == other.choices[0].text
    assert mine.choices[0].finish_reason == other.choices[0].finish_reason
    assert mine.usage.prompt_tokens == other.usage.prompt_tokens
    assert mine.usage.completion_tokens == other.usage.completion_tokens
    assert fields(mine) == fields(other)


def test_a_greedy_chat_whole_and_in_pieces(ours, theirs, folder):
    messages = [{"role": "user", "content": "def f(x"}]
    asked = {"model": str(folder), "messages": messages, "max_tokens": 20, "temperature": 0}
    mine, other = (client.chat.completions.create(**asked) for client in (ours, theirs))
    assert mine.choices[0].message.content == other.choices[0].message.content
    assert mine.choices[0].message.role == other.choices[0].message.role == "assistant"
    assert mine.choices[0].finish_reason == other.choices[0].finish_reason == "length"
    assert mine.usage.total_tokens == other.usage.total_tokens
    assert fields(mine) == fields(other)

    pieces, others = (
        list(client.chat.completions.create(**asked, stream=True)) for client in (ours, theirs)
    )
    text, theirs_text = ("".join(map(said, one)) for one in (pieces, others))
    assert text == mine.choices[0].message.content
    half = "\ufffd"  # of a character at the end, which theirs holds back for good
    assert text.rstrip(half) == theirs_text.rstrip(half)
    for one in (pieces, others):
        role, *roles = [piece.choices[0].delta.role for piece in one]
        *reasons, reason = [piece.choices[0].finish_reason for piece in one]
        assert (role, {*roles}) == ("assistant", {None})
        assert ({*reasons}, reason) == ({None}, "length")
        assert {piece.object for piece in one} == {"chat.completion.chunk"}
        assert len({(piece.id, piece.model, piece.created) for piece in one}) == 1
    aside = {"system_fingerprint", "usage"}  # theirs has usage in the last piece, unasked
    shapes, others_shapes = ([fields(piece, aside) for piece in one] for one in (pieces, others))
    ends = {"delta": {}, "index": "int", "finish_reason": "str"}
    assert others_shapes[-1]["choices"] == [ends]
    shapes[-1]["choices"][0]["delta"].pop("content", None)  # ours may say what it held back
    assert shapes[-1] == others_shapes[-1]
    assert others_shapes[1] in shapes  # a piece of text


def said(piece):
    return piece.choices[0].delta.content or ""
