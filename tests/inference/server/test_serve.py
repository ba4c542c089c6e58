"""`dsv3 serve` as it is called."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.server.serve import KEY_VARIABLE, key_of
from tests.inference.test_from_checkpoint import write_hf_folder


def test_serves_a_hugging_face_folder_until_it_is_interrupted(tmp_path):
    write_hf_folder(tmp_path)
    arguments = ["serve", "--hf", str(tmp_path), "--port", "0", "--drafts", "1"]
    command = [sys.executable, "-m", "dsv3_plugin.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            name, _, address = process.stdout.readline().split()
            body = {"model": name, "prompt": "def f(x", "max_tokens": 4}
            request = urllib.request.Request(f"{address}/completions", json.dumps(body).encode())
            with urllib.request.urlopen(request, timeout=300) as reply:
                assert json.load(reply)["usage"]["completion_tokens"] == 4
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=300) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("key", ["", " ", "a ", "a\n", "\t"])
def test_a_key_that_cannot_be_sent_is_refused(key):
    with pytest.raises(UserError, match=f"{KEY_VARIABLE} is empty, or has white space"):
        key_of({KEY_VARIABLE: key})


def test_a_key_is_that_of_the_environment():
    assert key_of({}) is None
    assert key_of({KEY_VARIABLE: "a Schlüssel"}) == "a Schlüssel"
