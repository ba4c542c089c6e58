"""Servers of a small model, listening on this machine."""

import contextlib
import socket
import threading

import uvicorn

from dsv3_plugin.data.tokenizer import SMALLEST_VOCABULARY
from tests import oracles

CONFIG = oracles.model_config(
    vocab_size=SMALLEST_VOCABULARY + 8, num_layers=2, moe_layer_freq="[0]*1+[1]*1",
    max_position_embeddings=2048,
)  # fmt: skip
KEY = "a key"
PATIENCE_S = 300
"""With a machine that has much to do."""


@contextlib.contextmanager
def listening(server):
    """The server's address."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        runner = uvicorn.Server(uvicorn.Config(server.application(), log_config=None))
        thread = threading.Thread(target=runner.run, args=([bound],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            runner.should_exit = True
            thread.join()
