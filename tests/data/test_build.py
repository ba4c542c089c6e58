"""Datasets as they are built: read back by upstream token for token, and nothing of bad input."""

import multiprocessing
import os

import numpy
import pytest

from dsv3_plugin.data.build import build_dataset
from dsv3_plugin.data.corpus import find_sources
from dsv3_plugin.data.documents import read_documents
from dsv3_plugin.data.forms import TextForm
from dsv3_plugin.data.tokenizer import TrainBpe, open_tokenizer, train_bpe
from dsv3_plugin.errors import UserError
from tests.data.small_corpus import TEXTS, contents, read_back, write_corpus


def test_upstream_reads_back_every_token(corpus, tokenizer, tmp_path):
    dataset = build_dataset(corpus, tokenizer, tmp_path / "out", held_out=0.1)
    train, held_out = read_back(dataset.train_prefix), read_back(dataset.held_out_prefix)
    expected = [
        [*tokenizer.backend.encode(text, add_special_tokens=False).ids, tokenizer.eos_id]
        for text in TEXTS
    ]

    # Both parts keep the corpus's order, and together they are the corpus.
    assert [ids for ids in expected if ids in train] == train
    assert [ids for ids in expected if ids in held_out] == held_out
    assert sorted(train + held_out) == sorted(expected)
    assert 2 <= len(held_out) <= 25
    manifest = dataset.manifest
    assert (manifest.train.documents, manifest.held_out.documents) == (len(train), len(held_out))
    assert manifest.train.tokens == sum(map(len, train))
    assert manifest.held_out.tokens == sum(map(len, held_out))
    assert manifest.token_bytes == 2
    assert manifest.corpus.documents == len(TEXTS)
    assert open_tokenizer(dataset.tokenizer_folder).digest == tokenizer.digest


def test_documents_cut_for_fim_are_in_psm_order_and_come_back(corpus, tokenizer, tmp_path):
    plain = build_dataset(corpus, tokenizer, tmp_path / "plain", held_out=0.2)
    half = build_dataset(corpus, tokenizer, tmp_path / "half", held_out=0.2, fim_rate=0.5)
    begin, hole, end = (
        tokenizer.backend.token_to_id(f"<\uff5cfim\u2581{name}\uff5c>")
        for name in ("begin", "hole", "end")
    )

    assert read_back(plain.held_out_prefix) == read_back(half.held_out_prefix)
    cut = 0
    for whole, ids in zip(read_back(plain.train_prefix), read_back(half.train_prefix), strict=True):
        assert ids[-1] == tokenizer.eos_id
        if ids != whole:
            cut += 1
            assert ids[0] == begin
            hole_at, end_at = ids.index(hole), ids.index(end)
            prefix, suffix = ids[1:hole_at], ids[hole_at + 1 : end_at]
            restored = "".join(
                tokenizer.decode(part) for part in (prefix, ids[end_at + 1 : -1], suffix)
            )
            assert restored == tokenizer.decode(whole[:-1])
    assert cut == half.manifest.train.fim_documents
    assert 25 < cut < 75


def test_processes_write_the_same_bytes(corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("dsv3_plugin.data.encode._BATCH_CHARACTERS", 500)
    alone = build_dataset(corpus, tokenizer, tmp_path / "alone", fim_rate=0.3)
    before = {*multiprocessing.active_children()}  # of whatever else this process has run
    together = build_dataset(corpus, tokenizer, tmp_path / "together", fim_rate=0.3, workers=2)

    assert contents(alone.folder) == contents(together.folder)
    assert {*multiprocessing.active_children()} <= before


def test_a_large_vocabulary_takes_four_bytes(corpus, tmp_path):
    from tests.data.test_tokenizer import foreign_tokenizer

    folder = foreign_tokenizer(tmp_path / "foreign", eos_token="</s>", eos_id=70_000)
    dataset = build_dataset(corpus, open_tokenizer(folder), tmp_path / "out", held_out=0)

    assert dataset.manifest.token_bytes == 4
    assert dataset.held_out_prefix is None
    assert {ids[-1] for ids in read_back(dataset.train_prefix)} == {70_000}
    with pytest.raises(UserError, match="set fim_rate to 0"):
        build_dataset(corpus, open_tokenizer(folder), tmp_path / "other", fim_rate=0.1)
    assert not (tmp_path / "other").exists()


def test_a_tokenizer_is_trained_on_the_training_part_alone(tmp_path):
    texts = [*TEXTS, *(f"{i} " + "zqzqzq" * 50 for i in range(40))]
    corpus = write_corpus(tmp_path / "corpus.jsonl", texts)
    probe = build_dataset(corpus, TrainBpe(300), tmp_path / "probe", held_out=0.5)
    tokenizer = open_tokenizer(probe.tokenizer_folder)
    kept = [tokenizer.decode(ids[:-1]) for ids in read_back(probe.train_prefix)]
    train_bpe(kept, 300, tmp_path / "expected")

    assert contents(probe.tokenizer_folder) == contents(tmp_path / "expected")


def test_bad_input_writes_nothing(corpus, tokenizer, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(corpus.read_text() + "{\n")
    empty = write_corpus(tmp_path / "empty.jsonl", [""])
    before = set(os.listdir(tmp_path))
    for source, choices, said in (
        (bad, {}, "line 121 is not JSON"),
        (empty, {}, r"the corpus is empty: none of the files of .*/empty\.jsonl holds"),
        (corpus, {"held_out": 1.0}, "held_out is 1.0"),
        (corpus, {"fim_rate": 1.5}, "fim_rate is 1.5"),
        (corpus, {"form": TextForm("body")}, 'no key "body"'),
    ):
        with pytest.raises(UserError, match=said):
            build_dataset(source, tokenizer, tmp_path / "out", **choices)
        assert set(os.listdir(tmp_path)) == before


def test_shares_that_are_no_number(corpus, tokenizer, tmp_path):
    for name in ("held_out", "fim_rate"):
        with pytest.raises(UserError, match=f"{name} is nan"):
            build_dataset(corpus, tokenizer, tmp_path / "out", **{name: float("nan")})


def test_the_standard_library_as_the_demo_uses_it(tmp_path):
    sources = find_sources("stdlib")
    some = [source.path for source in sources[::12]]
    dataset = build_dataset(some, TrainBpe(1000), tmp_path / "out", held_out=0.1, fim_rate=0.1)
    tokenizer = open_tokenizer(dataset.tokenizer_folder)
    plain = {
        tokenizer.decode(ids[:-1])
        for prefix in (dataset.train_prefix, dataset.held_out_prefix)
        for ids in read_back(prefix)
    }
    texts = {document.text for document in read_documents(find_sources(some))}

    assert len(plain & texts) == dataset.manifest.corpus.documents - (
        dataset.manifest.train.fim_documents
    )
    ids = numpy.concatenate([numpy.array(ids) for ids in read_back(dataset.train_prefix)])
    assert ids.max() < tokenizer.most_tokens == 1000
    bytes_per_token = sum(len(text.encode()) for text in texts) / (
        dataset.manifest.train.tokens + dataset.manifest.held_out.tokens
    )
    assert bytes_per_token > 2


def test_what_was_read_and_left_out_is_part_of_a_dataset(corpus, tokenizer, tmp_path):
    folder, out = tmp_path / "c", tmp_path / "out"
    folder.mkdir()
    corpus.rename(folder / "a.jsonl")
    (folder / "b.txt").write_text("a text")
    (folder / "table.csv").write_text("text\nx\n")
    facts = build_dataset(folder, tokenizer, out).manifest.corpus
    made = (out / "train.bin").stat().st_ino

    jsonl, text = facts.kinds
    assert (jsonl.kind, jsonl.files, jsonl.documents) == ("jsonl", 1, len(TEXTS))
    assert (text.kind, text.files, text.documents, text.tokens) == (
        "text .txt", 1, 1, len(tokenizer.backend.encode("a text").ids) + 1,
    )  # fmt: skip
    assert [of.examples for of in facts.left_out] == [("c/table.csv",)]

    # What is left out is told as it is now, of a dataset that is used again, too.
    (folder / "table.csv").rename(folder / "other.csv")
    again = build_dataset(folder, tokenizer, out).manifest.corpus
    assert [of.examples for of in again.left_out] == [("c/other.csv",)]
    assert (out / "train.bin").stat().st_ino == made
