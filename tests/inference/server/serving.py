"""Servers of a small model, listening on this machine."""

from contextlib import AbstractContextManager

from dsv3_plugin.data.tokenizer import SMALLEST_VOCABULARY
from dsv3_plugin.inference.engine import Engine
from dsv3_plugin.inference.server.app import Server
from dsv3_plugin.inference.server.engine_loop import EngineLoop, about_engine, in_thread
from dsv3_plugin.inference.server.limits import Limits
from dsv3_plugin.inference.server.new_weights import NewWeights
from dsv3_plugin.inference.server.pushed_weights import PushedWeights
from dsv3_plugin.inference.server.words import Words
from tests import oracles
from tests.served import served

CONFIG = oracles.model_config(
    vocab_size=SMALLEST_VOCABULARY + 8, num_layers=2, moe_layer_freq="[0]*1+[1]*1",
    max_position_embeddings=2048,
)  # fmt: skip
KEY = "a key"
PATIENCE_S = 300
"""With a machine that has much to do."""


def listening(server: Server) -> AbstractContextManager[str]:
    """The server's address, while the block runs."""
    return served(server.application())


def server_of(
    engine: Engine,
    words: Words,
    limits: Limits,
    key: str | None = None,
    *,
    name: str = "small",
    weights: NewWeights | None = None,
) -> Server:
    """A server whose engine runs in a thread beside the test."""
    loop = EngineLoop(engine, limits.waiting, weights)
    pushed = None if weights is None else PushedWeights(weights.root, weights.config)
    return Server(name, in_thread(loop, about_engine(engine, CONFIG)), words, limits, key, pushed)
