"""`dsv3 data build` and `dsv3 data show`, as typed."""

import inspect
import os
import subprocess
import sys

import pytest

from dsv3_plugin.cli.data import build
from dsv3_plugin.recipe.sections import Data, Training

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


@pytest.mark.parametrize(
    ("corpora", "sentence"),
    [
        ([""], '--corpus names nothing (""): name a file, a folder, or "stdlib".'),
        (["texts", "texts/"], "texts twice: name it once"),
    ],
)
def test_a_corpus_that_cannot_be_meant_is_refused(dsv3, tmp_path, corpora, sentence):
    named = [word for corpus in corpora for word in ("--corpus", corpus)]
    said = dsv3("data", "build", *named, "--tokenizer", "bpe:300", "--out", tmp_path / "out")
    assert said.code == 2
    assert sentence in said.err
    assert not (tmp_path / "out").exists()


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


def test_a_table_says_what_was_read_and_what_was_not(corpus, tmp_path, dsv3):
    (corpus / "table.csv").write_text("text\nx\n")
    built = dsv3(
        "data", "build", "--corpus", corpus, "--tokenizer", "bpe:300", "--out", tmp_path / "out",
        "--held-out", 0,
    ).out  # fmt: skip
    heading, row, left_out = built.splitlines()[-3:]
    tokens = next(line.split()[1] for line in built.splitlines() if line.startswith("train"))
    assert heading.split() == ["kind", "files", "documents", "tokens"]
    assert row.split() == ["text", ".txt", "30", "30", tokens]
    assert left_out.startswith("left out   1 file: a CSV table, ")
    assert left_out.endswith("(corpus/table.csv)")
    by_length = [line.split() for line in built.splitlines() if line.startswith("from ")]
    assert sum(int(documents) for *_, documents, _ in by_length) == 30
    assert sum(int(its.replace(",", "")) for *_, its in by_length) == int(tokens.replace(",", ""))


def test_another_dataset_gives_way_only_when_told(corpus, tmp_path, dsv3):
    out = tmp_path / "out"
    build = ("data", "build", "--corpus", corpus, "--tokenizer", "bpe:300", "--out", out)
    dsv3(*build)
    before = (out / "manifest.json").read_bytes()
    said = dsv3(*build, "--fim-rate", 0.5)
    assert said.code == 2
    assert "was built with fim_rate 0.0 instead of 0.5, and it must not change" in said.err
    assert (out / "manifest.json").read_bytes() == before
    assert "rate 0.5" in dsv3(*build, "--fim-rate", 0.5, "--replace").out


def test_a_build_asks_for_what_a_recipe_asks_for_by_default():
    defaults = inspect.signature(build).parameters
    fields = Data.model_fields
    for name in ("held_out", "fim_rate", "text_key", "on_bad_row"):
        assert defaults[name].default == fields[name].default
    assert defaults["seed"].default == Training.model_fields["seed"].default


def test_without_a_tokenizer_the_ways_to_one_are_named(corpus, tmp_path, dsv3):
    said = dsv3("data", "build", "--corpus", corpus, "--out", tmp_path / "out")
    assert said.code == 2
    assert "--tokenizer bpe:4096 trains one" in said.err
