"""A small model with a tokenizer, for all tests of the server."""

import pytest

from dsv3_plugin.data.tokenizer import open_tokenizer, train_bpe
from dsv3_plugin.model.build import build_model
from tests import oracles
from tests.inference.server.serving import CONFIG


@pytest.fixture(scope="module")
def model(world):
    built = build_model(CONFIG)
    oracles.randomize(built, seed=6)
    return built


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["def f(x):\n    return x\n"] * 3, CONFIG.vocab_size, folder)
    return open_tokenizer(folder)
