"""Datasets: read back by upstream token for token; reused, replaced, or left alone; never half."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from dsv3_plugin.data.build import build_dataset
from dsv3_plugin.data.corpus import find_sources
from dsv3_plugin.data.dataset_folder import find_dataset, open_dataset
from dsv3_plugin.data.documents import read_documents
from dsv3_plugin.data.forms import TextForm
from dsv3_plugin.data.indexed import decode_document
from dsv3_plugin.data.tokenizer import TextTokenizer, TrainBpe, open_tokenizer, train_bpe
from dsv3_plugin.errors import UserError

# Forked, so that a builder starts with megatron imported; nothing here holds threads that matter.
_forked = multiprocessing.get_context("fork")

TEXTS = [
    f"Document {i}: {'x' * (i % 7)}\n" + "".join(f"line {j} of {i}\n" for j in range(i % 11))
    for i in range(120)
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "bpe"
    train_bpe(TEXTS, 400, folder)
    return open_tokenizer(folder)


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus.jsonl", TEXTS)


def write_corpus(path: Path, texts) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def read_back(prefix: Path) -> list[list[int]]:
    indexed = IndexedDataset(str(prefix))
    assert list(indexed.document_indices) == list(range(len(indexed) + 1))
    return [indexed[i].tolist() for i in range(len(indexed))]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


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


def test_what_must_stay_stays(corpus, tokenizer, tmp_path):
    out = tmp_path / "out"
    before = contents(build_dataset(corpus, tokenizer, out).folder)
    with pytest.raises(UserError, match="must not change"):
        build_dataset(corpus, tokenizer, out, seed=5, replace=False)
    assert contents(out) == before

    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"other things than a dataset \(notes.txt\)"):
        build_dataset(corpus, tokenizer, out, seed=5)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        build_dataset(corpus, tokenizer, tmp_path / "file")
    assert (out / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"


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


def test_a_place_that_cannot_be_written(corpus, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        build_dataset(corpus, tokenizer, tmp_path / "file" / "out")
    with pytest.raises(UserError, match=r"cannot write .*: File name too long"):
        build_dataset(corpus, tokenizer, tmp_path / ("a" * 300))


def test_a_full_disk(corpus, tokenizer, tmp_path):
    """A limit on the size of files fails writes as a full disk does, only with another number."""
    out = tmp_path / "out"
    small = build_dataset(write_corpus(tmp_path / "small.jsonl", TEXTS[:20]), tokenizer, out)
    before = contents(small.folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*out: .*make room") as error:
            build_dataset(corpus, tokenizer, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)

    assert "Nothing was changed" in str(error.value)
    assert contents(out) == before
    assert set(os.listdir(tmp_path)) == {"corpus.jsonl", "small.jsonl", "out"}


def test_kill_leaves_the_old_dataset_or_none(tokenizer, tmp_path):
    """The corpus ends in a pipe that nobody feeds the second time, so the kill is mid-way."""
    out, pipe = tmp_path / "out", tmp_path / "pipe"
    os.mkfifo(pipe)
    corpus = [write_corpus(tmp_path / "corpus.jsonl", TEXTS), pipe]
    for old in (False, True):
        if old:
            build_dataset(corpus[0], tokenizer, out)
        before = contents(out) if old else None
        _kill_while_building(corpus, tokenizer, out)

        left_over = list(tmp_path.glob(".out.building-*"))
        assert len(left_over) == 1
        assert (left_over[0] / "train.bin").exists()
        assert (contents(out) if old else find_dataset(out)) == before
        assert out.exists() == old

    again = build_dataset(corpus[0], tokenizer, out, seed=9)
    assert len(read_back(again.train_prefix)) == again.manifest.train.documents
    assert not list(tmp_path.glob(".out.building-*"))


def _kill_while_building(corpus: list[Path], tokenizer: TextTokenizer, out: Path) -> None:
    before = set(out.parent.glob(".out.building-*"))
    process = _forked.Process(target=build_dataset, args=(corpus, tokenizer, out))
    process.start()
    try:
        corpus[1].write_text("the survey reads this")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.is_alive():
            new = set(out.parent.glob(".out.building-*/train.bin"))
            if any(path.parent not in before for path in new):
                break
            time.sleep(0.02)
        assert process.is_alive()
    finally:
        process.kill()
        process.join()


def test_a_second_build_says_that_it_waits_and_then_finds_the_first_ones_result(
    corpus, tokenizer, tmp_path
):
    """The first reads a pipe that is fed only once the second has said so."""
    out, pipe = tmp_path / "out", tmp_path / "pipe"
    os.mkfifo(pipe)
    first = _forked.Process(target=build_dataset, args=([corpus, pipe], tokenizer, out))
    first.start()
    command = (
        "data", "build", "--corpus", corpus, "--tokenizer", tokenizer.folder, "--out", out,
    )  # fmt: skip
    with pipe.open("w") as feed:  # opens once the first, holding the place, reads it
        second = subprocess.Popen(
            [sys.executable, "-m", "dsv3_plugin.cli", *map(str, command)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert second.stderr.readline() == (
            f"Waiting for another build of a dataset in {tmp_path}.\n"
        )
        assert not out.exists()
        first.kill()
        first.join()
        feed.close()
    output, errors = second.communicate()
    assert second.returncode == 0
    # A slow machine has lines of how far it is.
    assert not [line for line in errors.splitlines() if not line.startswith("Encoding documents: ")]
    assert "120 documents" in output
    assert set(os.listdir(tmp_path)) == {"corpus.jsonl", "pipe", "out"}


def test_builders_of_one_place_take_turns(corpus, tokenizer, tmp_path):
    """Two at once: the second waits, and then finds what the first has built."""
    out = tmp_path / "out"
    answers = _forked.Queue()
    builders = [
        _forked.Process(target=_build_and_tell, args=(corpus, tokenizer, out, answers))
        for _ in range(2)
    ]
    for builder in builders:
        builder.start()
    inodes = [answers.get(timeout=120) for _ in builders]
    for builder in builders:
        builder.join()

    assert inodes[0] == inodes[1] == (out / "train.bin").stat().st_ino
    assert set(os.listdir(tmp_path)) == {"corpus.jsonl", "out"}


def _build_and_tell(corpus, tokenizer, out, answers):
    build_dataset(corpus, tokenizer, out)
    answers.put((out / "train.bin").stat().st_ino)


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
