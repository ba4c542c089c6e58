"""A small corpus, and a tokenizer that was trained on it."""

from pathlib import Path

import pytest

from dsv3_plugin.data.tokenizer import TextTokenizer, open_tokenizer, train_bpe


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    from tests.data.small_corpus import TEXTS  # brings megatron

    folder = tmp_path_factory.mktemp("tokenizer") / "bpe"
    train_bpe(TEXTS, 400, folder)
    return open_tokenizer(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    from tests.data.small_corpus import TEXTS, write_corpus

    return write_corpus(tmp_path / "corpus.jsonl", TEXTS)
