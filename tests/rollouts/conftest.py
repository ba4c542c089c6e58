"""A server of the small trained model, beside the tests."""

import signal
from collections.abc import Iterator

import pytest

from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.inference.checkpoint_tokenizer import tokenizer_of_checkpoint
from tests.docs import to_servers
from tests.served import free_port
from tests.small_runs import Command, Trained


@pytest.fixture(scope="module")
def server(trained: Trained) -> Iterator[str]:
    """Its address; it may be starting yet."""
    port = free_port()
    command = Command.forked(*to_servers.serve(trained.folder, port))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        command.send(signal.SIGKILL).end()


@pytest.fixture(scope="module")
def tokenizer(trained: Trained) -> TextTokenizer:
    return tokenizer_of_checkpoint(trained.checkpoints)
