"""`dsv3 serve` as it is called."""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import psutil
import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.server import serve as servers
from dsv3_plugin.inference.server.serve import KEY_VARIABLE, ServerSettings, key_of, serve_hf
from tests.inference.server.serving import KEY, PATIENCE_S
from tests.inference.test_from_checkpoint import write_hf_folder


@pytest.fixture
def process(tmp_path):
    """`dsv3 serve` of a Hugging Face folder."""
    write_hf_folder(tmp_path)
    arguments = ["serve", "--hf", str(tmp_path), "--port", "0", "--drafts", "1"]
    command = [sys.executable, "-m", "dsv3_plugin.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", KEY_VARIABLE: KEY}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as begun:
        yield begun
        begun.kill()


def engine_of(process):
    """The process that has the model, or is to have it."""
    while True:
        for child in psutil.Process(process.pid).children():
            if "spawn_main" in "".join(child.cmdline()):
                return child


def test_serves_a_hugging_face_folder_until_it_is_interrupted(process):
    name, _, address = process.stdout.readline().split()
    body = {"model": name, "prompt": "def f(x", "max_tokens": 4}
    request = urllib.request.Request(f"{address}/completions", json.dumps(body).encode())
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=PATIENCE_S)
    assert refused.value.code == 401  # the key is the environment's
    request.add_header("Authorization", f"Bearer {KEY}")
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        assert json.load(reply)["usage"]["completion_tokens"] == 4
    place = urlsplit(address)
    assert place.hostname == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):  # it listens nowhere else
        socket.create_connection(("127.0.0.2", place.port), PATIENCE_S)
    engine = engine_of(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE_S) == 0
    engine.wait(PATIENCE_S)
    assert process.stderr.read() == ""


def test_the_engine_ends_with_who_serves(process):
    engine = engine_of(process)
    process.kill()
    engine.wait(PATIENCE_S)


def test_an_engine_that_is_killed_while_it_loads_is_said(process):
    engine_of(process).kill()
    assert process.wait(timeout=PATIENCE_S) == 2
    assert "The engine's process was ended by SIGKILL" in process.stderr.read()


def test_the_engines_process_is_begun_before_anything_that_takes_long_is_imported():
    code = "import sys, dsv3_plugin.inference.server.serve; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False"]


def test_why_the_engine_is_not_made_is_said_by_who_serves(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json"):
        serve_hf(tmp_path, ServerSettings(port=0), print)


@pytest.mark.parametrize(("ran", "code"), [(True, 0), (False, 1)])
def test_an_engine_that_ended_by_itself_is_exit_code_1(dsv3, tmp_path, monkeypatch, ran, code):
    monkeypatch.setattr(servers, "serve_hf", lambda *_: ran)
    (tmp_path / "tokenizer.json").touch()
    assert dsv3("serve", "--hf", tmp_path).code == code


@pytest.mark.parametrize("key", ["", " ", "a ", "a\n", "\t"])
def test_a_key_that_cannot_be_sent_is_refused(key):
    with pytest.raises(UserError, match=f"{KEY_VARIABLE} is empty, or has white space"):
        key_of({KEY_VARIABLE: key})


def test_a_key_is_that_of_the_environment():
    assert key_of({}) is None
    assert key_of({KEY_VARIABLE: "a Schlüssel"}) == "a Schlüssel"


@pytest.mark.parametrize("quiet", [False, True])
def test_a_client_that_left_is_no_line_on_the_terminal(quiet):
    """asyncio has one for each event behind the fifth."""
    said = []
    lines = logging.Handler()
    lines.emit = said.append
    logger = logging.getLogger("asyncio")

    async def tell_who_left():
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        _, writer = await asyncio.open_connection(sock=ours)
        theirs.close()
        for _ in range(10):
            writer.write(b"data: {}\n\n")

    logger.addHandler(lines)
    if quiet:
        lines.addFilter(servers.is_of_the_server)
    try:
        asyncio.run(tell_who_left())
    finally:
        logger.removeHandler(lines)
    assert bool(said) is not quiet
