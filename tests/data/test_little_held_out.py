"""What sizes of files say of what is held out, before anything is built."""

import gzip

import pytest

from dsv3_plugin.data.little_held_out import little_held_out
from dsv3_plugin.recipe.load import load_recipe

# pretrain/tiny evaluates on 10 batches of 8 sequences of 256 tokens.
ONE = 10 * 8 * 256
READ = f"and an evaluation reads {ONE:,} (training.eval_steps 10)"


def said(*words: str, of: str = "pretrain/tiny") -> list[str]:
    return [*little_held_out(load_recipe(of, words))]


def test_a_share_of_a_small_corpus(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "a.txt").write_bytes(b"a" * 60_000)
    (tmp_path / "more/b.jsonl").write_bytes(b"b" * 40_000)
    corpus = f"data.corpus=[{tmp_path}/a.txt, {tmp_path}/more]"
    assert said(corpus, "data.held_out=0.01") == [
        f"data.held_out 0.01 of 100.0 kB is less than 1,001 tokens, {READ}: it is repeated"
    ]
    assert said(corpus, "data.held_out=0.5") == []
    assert said(corpus, "data.held_out=0.01", "training.eval_interval=null") == []


def test_held_out_sets_that_are_small_or_one_document(tmp_path):
    (tmp_path / "book.txt").write_text("a" * ONE)
    (tmp_path / "rows.jsonl").write_text('{"text": "short"}\n' * 2)
    sets = f"data.held_out_sets={{book: {tmp_path}/book.txt, rows: {tmp_path}/rows.jsonl}}"
    assert said(sets) == [
        "data.held_out_sets.book is a single document: what is evaluated says how that one is "
        "predicted",
        "data.held_out_sets.rows has 36 bytes, and so fewer than 37 tokens, "
        f"{READ}: it is repeated",
    ]


def test_a_corpus_of_one_document_has_none_to_hold_out(tmp_path):
    (tmp_path / "book.txt").write_text("a" * 10_000_000)
    (tmp_path / "more.txt").write_text("a")
    corpus = f"data.corpus={tmp_path}/book.txt"
    for never in ([], ["training.eval_interval=null"]):
        assert said(corpus, *never) == [
            f"data.corpus: {tmp_path}/book.txt is one single document, so none can be held out, "
            "and it is refused when the data are built: split it into several, or set "
            "data.held_out to 0"
        ]
    assert said(corpus, "data.held_out=0", "training.eval_interval=null") == []
    assert said(f"data.corpus=[{tmp_path}/book.txt, {tmp_path}/more.txt]") == []


def test_what_is_compressed_or_not_here_says_nothing(tmp_path):
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "short"}\n' * 2000))
    for corpus in (f"{tmp_path}/rows.jsonl.gz", f"{tmp_path}/nowhere", "stdlib"):
        assert said(f"data.corpus={corpus}") == []


@pytest.mark.parametrize("name", ["pretrain/tiny", "extend/tiny-1k", "sft/tiny", "rl/tiny"])
def test_nothing_is_said_of_what_ships(name):
    assert said(of=name) == []
