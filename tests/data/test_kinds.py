"""What a file is, by its name and by its contents."""

import gzip
import io
import json
import tarfile

import pyarrow
import pytest
from pyarrow import parquet

from dsv3_plugin.data.kinds import NotRead, kind_of
from dsv3_plugin.errors import UserError

ROWS = [{"text": f"document {i}", "url": f"http://host/{i}"} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
OTHER_LINES = b'{"body": "one"}\n{"body": "two"}\n'


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def parquet_bytes() -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["a"]}), file)
    return file.getvalue()


def tar_bytes() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


def names_alone(value: object) -> str:
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl", LINES, "jsonl"),
        ("A.JSONL", LINES, "jsonl"),
        ("a.ndjson", OTHER_LINES, "jsonl"),
        ("a.json", LINES, "jsonl"),
        ("a.json", b"\xef\xbb\xbf" + LINES, "jsonl"),
        ("a.json", b"\n" + LINES, "jsonl"),
        ("a.json", OTHER_LINES, "jsonl"),  # reading it names the key that is missing
        ("a.json", b'{"text": "' + b"x" * 2_000_000 + b'"}\n', "jsonl"),
        ("a.json.gz", gzipped(LINES), "jsonl"),
        ("a.json.zst", zstd(LINES), "jsonl"),
        ("a.JSON", json.dumps(ROWS).encode(), "json"),
        ("a.json", json.dumps(ROWS, indent=2).encode(), "json"),
        ("a.json", json.dumps(ROWS[0], indent=2).encode(), "json"),
        ("part-00000", LINES, "jsonl"),
        ("part-00000", gzipped(LINES), "jsonl"),
        ("a.txt", LINES, "jsonl"),
        ("a.dat", json.dumps(ROWS, indent=1).encode(), "json"),
        ("a.PARQUET", parquet_bytes(), "parquet"),
        ("part-00000", parquet_bytes(), "parquet"),
        ("a.txt", b"text", "text"),
        ("README", b"[a link](b) and {braces}", "text"),
        ("a.py", b"{'a': 1}\n[x for x in y]\n", "text"),
        ("a.txt.gz", gzipped(b"text"), "text"),
        ("a.unheard-of", b"text", "text"),
        ("a.txt", "text".encode("utf-16"), "text"),  # reading it says what is wrong
        ("a.txt.gz", b"not gzip", "text"),
        ("a.txt", b"", "text"),
    ],
    ids=names_alone,
)
def test_what_is_read(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    assert kind_of(tmp_path / name, ["text"]) == kind


@pytest.mark.parametrize(
    ("name", "content", "why", "is_data"),
    [
        ("a.csv", b"text\nx\n", "a CSV table", True),
        ("A.TSV.GZ", gzipped(b"text\nx\n"), "a TSV table", True),
        ("dataset_infos.json", b'{"text": 1}', "about data", False),
        ("a.jsonl.sha256", b"0f343b0931126a20f133d67c2b018a3b  a.jsonl", "about data", False),
        ("a.jsonl~", LINES, "a copy or unfinished", False),
        ("a.jsonl.bak", LINES, "a copy or unfinished", False),
        ("a.parquet.tmp", parquet_bytes(), "a copy or unfinished", False),
        ("stats.json", b'{"rows": 3}\n', 'JSON without the key "text"', False),
        ("infos.json", b'{"a": {"text": {"dtype": "string"}}}', "JSON without the key", False),
        ("a.ipynb", b'{\n "cells": []\n}', "JSON without the key", False),
        ("a.json", b"[1, 2]", "JSON, but no objects", False),
        ("a.txt", b"PK\x03\x04....", "a ZIP archive", True),
        ("a.jsonl.bz2", b"BZh91AY&SY....", "compressed by bzip2", True),
        ("a.jsonl.xz", b"\xfd7zXZ\x00....", "compressed by xz", True),
        ("a.arrow", b"ARROW1....", "an Arrow file", True),
        ("a.tar.gz", gzipped(tar_bytes()), "a tar archive", True),
        ("a.pdf", b"%PDF-1.7", "a PDF", False),
        ("a.png", b"\x89PNG\r\n\x1a\n\x00\x00", "binary", False),
        ("zeros.txt.gz", gzipped(bytes(10**6)), "binary", False),
    ],
    ids=names_alone,
)
def test_what_is_not_read(tmp_path, name, content, why, is_data):
    (tmp_path / name).write_bytes(content)
    kind = kind_of(tmp_path / name, ["text"])
    assert isinstance(kind, NotRead)
    assert why in kind.why
    assert kind.is_data == is_data


def test_the_key_decides_what_json_is(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"body": "one"}\n')
    assert kind_of(path, ["body"]) == "jsonl"
    assert isinstance(kind_of(path, ["text"]), NotRead)


def test_a_pointer_of_git_lfs_is_no_text(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(UserError, match="git lfs pull"):
        kind_of(path, ["text"])
