"""Servers of a small model, listening on this machine."""

from contextlib import AbstractContextManager

from dsv3_plugin.data.tokenizer import SMALLEST_VOCABULARY
from dsv3_plugin.inference.server.app import Server
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
