"""The place of a dataset: what is there stays, builders take turns, and nothing is ever half."""

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from dsv3_plugin.data.build import build_dataset
from dsv3_plugin.data.dataset_folder import find_dataset
from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.errors import UserError
from tests.data.small_corpus import TEXTS, contents, read_back, write_corpus
from tests.forked_programs import ForkedProcess

# Forked, so that a builder starts with megatron imported; nothing here holds threads that matter.
_forked = multiprocessing.get_context("fork")


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
        deadline = time.monotonic() + 300
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
    reads = ([corpus, pipe], tokenizer, out)
    first = _forked.Process(target=build_dataset, args=reads, daemon=True)
    first.start()
    command = (
        "data", "build", "--corpus", corpus, "--tokenizer", tokenizer.folder, "--out", out,
    )  # fmt: skip
    with pipe.open("w") as feed:  # opens once the first, holding the place, reads it
        second = ForkedProcess([*map(str, command)], {**os.environ}, apart=True)
        waits = f"Waiting for another build of a dataset in {tmp_path}.\n"
        deadline = time.monotonic() + 300
        while not (said := second.complaints()).endswith("\n"):
            assert second.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert said == waits
        assert not out.exists()
        first.kill()
        first.join()
        feed.close()
    output, errors = second.communicate(timeout=300)
    assert second.returncode == 0
    errors = errors.removeprefix(waits)
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
    inodes = [answers.get(timeout=300) for _ in builders]
    for builder in builders:
        builder.join()

    assert inodes[0] == inodes[1] == (out / "train.bin").stat().st_ino
    assert set(os.listdir(tmp_path)) == {"corpus.jsonl", "out"}


def _build_and_tell(corpus, tokenizer, out, answers):
    build_dataset(corpus, tokenizer, out)
    answers.put((out / "train.bin").stat().st_ino)
