"""`dsv3 serve` has its model on the GPU, in the engine's own process."""

import json
import re
import subprocess
import sys
import urllib.request

import pytest

from tests.gpu.test_inference import HIDE_GPU
from tests.gpu.trained import dsv3

PROMPT, MANY = "def read(self):", 12


@pytest.fixture
def address(start):
    """Where a server of the small model answers."""
    command = [sys.executable, "-m", "dsv3_plugin.cli", "serve", "--port", "0"]
    command += ["--checkpoint", str(start.release), "--drafts", "1"]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as begun:
        name, *_, where = begun.stdout.readline().split()
        yield name, where
        begun.kill()


def test_its_likeliest_text_is_that_of_the_cpu(start, address):
    name, where = address
    body = {"model": name, "prompt": PROMPT, "max_tokens": MANY, "temperature": 0}
    request = urllib.request.Request(f"{where}/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=600) as reply:
        [choice] = json.load(reply)["choices"]
    said = ("generate", "--checkpoint", start.release, "--prompt", PROMPT)
    expected = dsv3(*said, "--max-new-tokens", str(MANY), **HIDE_GPU)
    in_words = re.sub("<｜[^｜]*｜>", "", expected)  # which a server leaves out
    assert (PROMPT + choice["text"]).rstrip() == in_words.rstrip()
