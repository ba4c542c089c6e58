"""`dsv3 data build` and `dsv3 data show`, as typed."""

import os
import subprocess
import sys

import pytest

TEXTS = {f"{i:02}.txt": f"Document {i}.\n" + "all the same words\n" * 9 for i in range(30)}


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return folder


def test_build_and_show(corpus, tmp_path, dsv3):
    out = tmp_path / "out"
    build = (
        "data", "build", "--corpus", corpus, "--tokenizer", "bpe:300", "--out", out,
        "--held-out", 0.1, "--fim-rate", 0.5, "--seed", 3, "--workers", 1,
    )  # fmt: skip
    built = dsv3(*build).out
    assert "30 documents" in built
    assert "cut for fill-in-the-middle (rate 0.5, seed 3)" in built
    assert dsv3(*build).out == built

    shown = [dsv3("data", "show", out, "--document", i, "--tokens", 500).out for i in range(20)]
    assert all(text.startswith(built.rstrip("\n")) for text in shown)
    assert all("all the same words" in text for text in shown)
    assert all(text.rstrip().endswith("<｜end▁of▁sentence｜>") for text in shown)
    assert 3 < sum("<｜fim▁hole｜>" in text for text in shown) < 17


def test_several_corpora_and_a_tokenizer_folder(corpus, tmp_path, dsv3):
    first, second = tmp_path / "first", tmp_path / "second"
    dsv3("data", "build", "--corpus", corpus, "--tokenizer", "bpe:300", "--out", first)
    more = tmp_path / "more.txt"
    more.write_text("one more")
    output = dsv3(
        "data", "build", "--corpus", corpus, "--corpus", more, "--out", second,
        "--tokenizer", first / "tokenizer",
    ).out  # fmt: skip

    assert "31 documents" in output
    for path in (first / "tokenizer").iterdir():
        assert (second / "tokenizer" / path.name).read_bytes() == path.read_bytes()


def test_wrong_words(corpus, tmp_path, dsv3):
    assert "is not a dataset" in dsv3("data", "show", tmp_path).err
    build = ("data", "build", "--corpus", corpus, "--out", tmp_path / "out", "--tokenizer")
    dsv3(*build, "bpe:300")
    said = dsv3("data", "show", tmp_path / "out", "--document", 30)
    assert "has training documents 0 to" in said.err
    assert dsv3(*build, "bpe:300", "--workers", 0).code == 2


def test_an_error_is_one_sentence_and_exit_code_2(tmp_path):
    command = (
        "data", "build", "--corpus", "nowhere", "--tokenizer", "bpe:300", "--out", "out",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "dsv3_plugin.cli", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("dsv3: corpus nowhere does not exist")
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []
