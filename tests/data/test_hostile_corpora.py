"""Corpora that lie about their size: refused in a sentence, in little memory, never by a crash."""

import gzip
import os
import subprocess
import sys

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.data.corpus import find_sources
from dsv3_plugin.data.documents import MOST_BYTES, read_documents
from dsv3_plugin.data.left_out import Tally
from dsv3_plugin.errors import UserError

MB = 2**20

# Address space in all; the interpreter and the libraries that it loads map some of it.
MOST_MEMORY = 500 * 10**6

READ = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MOST_MEMORY}, {MOST_MEMORY}))
from dsv3_plugin.data.corpus import find_sources
from dsv3_plugin.data.documents import read_documents
from dsv3_plugin.data.left_out import Tally
from dsv3_plugin.data.survey import survey
from dsv3_plugin.errors import UserError
left_out = Tally()
try:
    documents = read_documents(
        find_sources(sys.argv[1]), on_bad_row=sys.argv[2], left_out=left_out
    )
    print(survey(documents, left_out).documents, "documents")
except UserError as error:
    sys.exit(f"dsv3: {{error}}")
"""


def read_in_little_memory(path, on_bad_row="stop") -> str:
    """What a process says that reads a corpus, with so much memory and no more."""
    done = subprocess.run(
        [sys.executable, "-c", READ, path, on_bad_row],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def gzipped_run(byte: bytes, megabytes: int) -> bytes:
    """Megabytes of one byte, in members of which each is as small as can be."""
    return gzip.compress(byte * 64 * MB, mtime=0) * (megabytes // 64)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("zeros.txt.gz", lambda: gzipped_run(b"\0", 3072), "not text but binary"),
        ("letters.txt.gz", lambda: gzipped_run(b"x", 3072), "expands to more than 100 times"),
        (
            "lines.jsonl.gz",
            lambda: gzip.compress((b" " * 99 + b"\n") * MB, mtime=0),
            "expands to more than",
        ),
        (
            "letters.txt.zst",
            lambda: pyarrow.compress(b"x" * 64 * MB, "zstd", asbytes=True),
            "expands to more than 100 times",
        ),
        ("deep.jsonl", lambda: b"[" * 30 * MB, "more than 1,000,000 strings and values"),
        ("wide.jsonl", lambda: b'{"text": [' + b"{}," * 10 * MB, "more than 1,000,000 strings"),
        ("wide.json", lambda: b'[{"text": "a"}' + b',{"":""}' * 2 * MB, "more than 1,000,000"),
        ("most.txt", lambda: "😀".encode() + b"x" * (MOST_BYTES - 4), "1 documents"),
        ("escapes.jsonl", lambda: b'{"text": "' + b"\\n" * 15 * MB + b'"}', "1 documents"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_small_or_dense_takes_little_memory(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content())
    assert said in read_in_little_memory(tmp_path / name)


def test_a_text_of_a_gigabyte_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.write(b"x" * MB)
        file.seek(1000 * MB)  # a hole: zeros that take no place on the disk
        file.write(b"x")
    said = read_in_little_memory(path)
    assert "a.txt has more than 268.4 MB in one document: split it into several files" in said


def test_a_text_may_be_as_long_as_its_file(tmp_path):
    path = tmp_path / "a.txt"
    text = "\n".join(map(str, range(MOST_BYTES // 7))).encode()
    path.write_bytes(text)
    (document,) = read_documents(find_sources(path))
    assert len(document.text) == len(text) > MOST_BYTES
    path.unlink()
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(text, compresslevel=1, mtime=0))
    with pytest.raises(UserError, match=r"more than 33\.6 MB in one document"):
        list(read_documents(find_sources(path)))


def test_a_line_of_a_gigabyte_is_refused_or_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "' + b"x" * (MOST_BYTES // 2))
        file.seek(1000 * MB)  # a hole: zeros that take no place on the disk
        file.write(b'"}\n{"text": "after it"}\n')
    assert "line 1 has more than 33.6 MB in one document" in read_in_little_memory(path)
    assert "1 documents" in read_in_little_memory(path, "skip")


ROWS = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [b'{"text": "a"}', b'{"text": 1e999}', b'{"text": "\\ud800"}', b"NaN", b"\xef\xbb\xbf{}"]
    ),
    st.integers(1, 5000).map(lambda depth: b'{"text":' * depth),
    st.integers(1, 9000).map(lambda digits: b'{"text": ' + b"9" * digits + b"}"),
)


@given(
    rows=st.lists(ROWS, max_size=5),
    suffix=st.sampled_from(
        ["jsonl", "json", "txt", "parquet", "jsonl.gz", "jsonl.zst", "csv", "unheard-of", "idx"]
    ),
    wrap=st.sampled_from([bytes, gzip.compress, lambda data: b"PAR1" + data + b"PAR1"]),
)
def test_whatever_a_file_holds_is_read_or_refused(tmp_path_factory, rows, suffix, wrap):
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    path.write_bytes(wrap(b"\n".join(rows)))
    try:
        sources = find_sources(path)
    except UserError:
        return
    list(read_documents(sources, on_bad_row="skip", left_out=Tally()))
    try:
        list(read_documents(sources))
    except UserError as error:
        assert len(str(error)) < 2000  # noqa: PT017
