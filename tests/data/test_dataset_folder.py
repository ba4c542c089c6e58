"""A dataset that is there: used again, replaced, or told to be damaged."""

import json
import os

import pytest

from dsv3_plugin.data.build import build_dataset
from dsv3_plugin.data.dataset_folder import open_dataset
from dsv3_plugin.data.indexed import decode_document
from dsv3_plugin.errors import UserError
from tests.data.small_corpus import TEXTS, contents, write_corpus


def test_the_same_call_reuses_and_another_rebuilds(corpus, tokenizer, tmp_path):
    out = tmp_path / "out"
    first = build_dataset(corpus, tokenizer, out)
    made = (out / "train.bin").stat().st_ino
    (out / "train" / "cache").mkdir(parents=True)  # as upstream leaves behind

    again = build_dataset(corpus, tokenizer, out)
    assert (out / "train.bin").stat().st_ino == made
    os.utime(corpus, (1, 1))
    moved = build_dataset(corpus.rename(tmp_path / "moved.jsonl"), tokenizer, out)
    assert (out / "train.bin").stat().st_ino == made
    assert first.fingerprint == again.fingerprint == moved.fingerprint

    rebuilt = build_dataset(tmp_path / "moved.jsonl", tokenizer, out, fim_rate=0.5)
    assert rebuilt.fingerprint != first.fingerprint
    assert (out / "train.bin").stat().st_ino != made
    assert not (out / "train").exists()  # indices of the data that is gone

    write_corpus(tmp_path / "moved.jsonl", [*TEXTS, "one more"])
    grown = build_dataset(tmp_path / "moved.jsonl", tokenizer, out, fim_rate=0.5)
    assert grown.manifest.corpus.documents == len(TEXTS) + 1
    assert set(os.listdir(tmp_path)) == {"moved.jsonl", "out"}


def test_a_damaged_dataset_is_noticed_and_built_again(corpus, tokenizer, tmp_path):
    out = tmp_path / "out"
    whole = contents(build_dataset(corpus, tokenizer, out).folder)
    for name, damage in (
        ("train.bin", b"short"),
        ("held_out.idx", b""),
        ("manifest.json", b"{}"),
        ("manifest.json", b"\xff"),
    ):
        (out / name).write_bytes(damage)
        with pytest.raises(UserError, match=r"build the dataset again"):
            open_dataset(out)
        build_dataset(corpus, tokenizer, out)
        assert contents(out) == whole
    (out / "manifest.json").unlink()
    with pytest.raises(UserError, match="is not a dataset"):
        open_dataset(out)


def test_a_dataset_without_its_bad_rows_is_another_one_to_who_wants_to_know(
    corpus, tokenizer, tmp_path
):
    with corpus.open("a") as file:
        file.write("not JSON\n")
    out = tmp_path / "out"
    dataset = build_dataset(corpus, tokenizer, out, on_bad_row="skip")
    assert dataset.manifest.corpus.documents == len(TEXTS)
    assert build_dataset(corpus, tokenizer, out, on_bad_row="skip") == dataset
    with pytest.raises(UserError, match="line 121 is not JSON"):
        build_dataset(corpus, tokenizer, out)
    assert open_dataset(out) == dataset


def test_a_manifest_or_an_index_that_lies_is_noticed(corpus, tokenizer, tmp_path):
    dataset = build_dataset(corpus, tokenizer, tmp_path / "out")
    path = dataset.folder / "manifest.json"
    manifest, index = json.loads(path.read_text()), dataset.train_prefix.with_suffix(".idx")
    for part in (
        {"documents": -1, "fim_documents": 0, "tokens": -1},
        {"documents": 2**62, "fim_documents": 0, "tokens": 2**62},
    ):
        path.write_text(json.dumps(manifest | {"train": part}))
        with pytest.raises(UserError, match="build the dataset again"):
            open_dataset(dataset.folder)
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="build the dataset again"):
        open_dataset(dataset.folder)
    path.write_text(json.dumps(manifest))
    index.write_bytes(index.read_bytes()[:-8] + bytes(8))
    with pytest.raises(UserError, match=r"train.idx does not describe train.bin"):
        open_dataset(dataset.folder)


def test_tokens_that_the_tokenizer_has_not_are_told(corpus, tokenizer, tmp_path):
    dataset = build_dataset(corpus, tokenizer, tmp_path / "out")
    data = dataset.train_prefix.with_suffix(".bin")
    data.write_bytes(b"\xff" * data.stat().st_size)
    with pytest.raises(UserError, match="tokens that its tokenizer has not"):
        decode_document(dataset, 0, 5)
