"""Names of single tokens: no two alike, and bytes that make the text."""

import tokenizers
from tokenizers import decoders, models

from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.inference.server.spelling import Spelling


def test_bytes_of_tokens_are_the_texts(tokenizer):
    spelling = Spelling.of(tokenizer)
    text = "def f(é, 😀): naïve\n"
    ids = tokenizer.backend.encode(text).ids
    assert b"".join(map(spelling.bytes, ids)) == text.encode()
    assert sum(map(spelling.characters, ids)) == len(text)


def test_no_two_names_are_alike_and_parts_of_characters_are_bytes(tokenizer):
    spelling = Spelling.of(tokenizer)
    names = [spelling.name(token) for token in range(tokenizer.most_tokens + 5)]
    assert len(set(names)) == len(names)
    first, *_ = tokenizer.backend.encode("é", add_special_tokens=False).ids
    assert spelling.name(first) == "bytes:\\xc3"
    assert names[-1] == f"token_id:{tokenizer.most_tokens + 4}"
    assert spelling.name(tokenizer.eos_id) == tokenizer.decode([tokenizer.eos_id])


def test_tokens_that_are_written_alike_are_called_by_their_ids(tmp_path):
    vocabulary = {"a": 0, "▁a": 1, "b": 2}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    backend.decoder = decoders.Metaspace()
    spelling = Spelling.of(TextTokenizer(tmp_path, backend, 2))
    assert [spelling.name(token) for token in range(3)] == ["token_id:0", "token_id:1", "b"]
    assert spelling.bytes(1) == b"a"
