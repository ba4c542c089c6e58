"""Corpora: what is read, in which order, and what is said when it cannot be."""

import gzip
import json
import sysconfig
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from dsv3_plugin.data.corpus import (
    Source,
    file_signature,
    find_sources,
    read_documents,
)
from dsv3_plugin.errors import UserError


def texts(corpus, text_key="text"):
    return [document.text for document in read_documents(find_sources(corpus), text_key)]


def write_jsonl(path: Path, values) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def write_parquet(path: Path, **columns) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_standard_library_is_a_corpus_of_its_source_files():
    sources = find_sources("stdlib")
    names = [source.name for source in sources]
    root = Path(sysconfig.get_path("stdlib"))

    assert len(names) == len(set(names))
    assert {"argparse.py", "json/decoder.py", "collections/__init__.py"} <= set(names)
    assert not [name for name in names if "site-packages" in name or "test" in name.split("/")]
    assert find_sources("stdlib") == sources
    by_name = {document.name: document.text for document in read_documents(sources)}
    assert by_name["argparse.py"] == (root / "argparse.py").read_bytes().decode()
    assert 8e6 < sum(len(text.encode()) for text in by_name.values()) < 40e6


def test_a_folder_is_read_in_order_of_names_without_hidden_files(tmp_path):
    for name in ("b.txt", "a/2.md", "a/1.txt", ".hidden", ".git/config", "c"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)

    assert texts(tmp_path) == ["b.txt", "c", "a/1.txt", "a/2.md"]
    assert [source.name for source in find_sources(tmp_path)][:1] == [f"{tmp_path.name}/b.txt"]


def test_every_format_gives_the_same_documents(tmp_path):
    expected = ["first\r\n", "zweites Dokument: äöü", "第三\n\n"]
    rows = [{"text": text, "id": i} for i, text in enumerate(expected)]
    jsonl = write_jsonl(tmp_path / "c.jsonl", rows)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(jsonl.read_bytes()))
    write_parquet(tmp_path / "c.parquet", id=[0, 1, 2], text=expected)
    plain = []
    for i, text in enumerate(expected):
        plain.append(tmp_path / f"{i}.txt.gz")
        plain[-1].write_bytes(gzip.compress(text.encode()))

    assert texts(jsonl) == expected
    assert texts(tmp_path / "c.jsonl.gz") == expected
    assert texts(tmp_path / "c.parquet") == expected
    assert texts(plain) == expected


def test_keys_empty_documents_and_blank_lines(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"body": "one"}\n\n{"body": ""}\n{"body": "two"}')
    documents = list(read_documents(find_sources(path), "body"))

    assert [document.text for document in documents] == ["one", "two"]
    assert [document.name for document in documents] == ["c.jsonl:1", "c.jsonl:4"]


def test_equal_texts_have_equal_digests(tmp_path):
    path = write_jsonl(tmp_path / "c.jsonl", [{"text": t} for t in ("same", "other", "same")])
    first, other, again = read_documents(find_sources(path))

    assert first.digest == again.digest != other.digest


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "x"', "c.jsonl line 2 is not JSON"),
        ('["x"]', "c.jsonl line 2 is not a JSON object"),
        ('{"body": "x", "id": 1}', 'c.jsonl line 2 has no key "text" (its keys: body, id)'),
        ('{"text": 5}', 'c.jsonl line 2: "text" is not text but int'),
        ('{"text": null}', 'c.jsonl line 2: "text" is not text but NoneType'),
        ('{"text": "\\ud800"}', "a lone surrogate at character 0"),
        ("[" * 100_000, "c.jsonl line 2 is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    documents = read_documents(find_sources(path))

    assert next(documents).text == "fine"  # what comes before it has been read already
    with pytest.raises(UserError) as error:
        next(documents)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"fine \xff", "a.txt is not UTF-8 text (byte 0xff at offset 5)"),
        ("a.jsonl", b'{"text": "\xff"}', "a.jsonl line 1 is not UTF-8 text"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}' * 999, mtime=0)[:-9], "a.jsonl.gz"),
        ("a.txt.gz", b"not gzip", "a.txt.gz: Not a gzipped file"),
        ("a.parquet", b"not parquet", "a.parquet is not a readable parquet file"),
    ],
    ids=["text", "jsonl", "cut off gzip", "not gzip", "not parquet"],
)
def test_a_damaged_file_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        texts(tmp_path / name)
    assert said in str(error.value)


def test_a_parquet_file_without_the_column_or_with_nulls_is_named(tmp_path):
    path = write_parquet(tmp_path / "c.parquet", body=["x"], id=[1])
    with pytest.raises(UserError, match=r'no column "text" \(its columns: body, id\)'):
        texts(path)
    path = write_parquet(tmp_path / "d.parquet", text=["x", None])
    with pytest.raises(UserError, match="row 2"):
        texts(path)


def test_a_missing_or_empty_corpus_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no/such.*does not exist"):
        find_sources(tmp_path / "no/such")
    with pytest.raises(UserError, match="holds no files"):
        find_sources(tmp_path)


def test_a_file_that_vanished_is_named(tmp_path):
    gone = [Source(tmp_path / "gone.txt", "gone.txt", "text")]
    with pytest.raises(UserError, match=r"cannot read .*gone.txt"):
        list(read_documents(gone))
    with pytest.raises(UserError, match=r"cannot read .*gone.txt"):
        file_signature(gone)


def test_signature_tells_whether_files_changed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = file_signature(find_sources(tmp_path))

    assert file_signature(find_sources(tmp_path)) == before
    path.write_text("other")
    assert file_signature(find_sources(tmp_path)) != before


@pytest.mark.parametrize("name", ["c.jsonl", "c.parquet"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, name):
    rows = [f"{i} " + "x" * 10_000 for i in range(2000)]
    path = tmp_path / name
    if name.endswith(".jsonl"):
        write_jsonl(path, ({"text": row} for row in rows))
    else:
        parquet.write_table(pyarrow.table({"text": rows}), path, row_group_size=100)
    size = sum(map(len, rows))
    del rows
    tracemalloc.start()
    count = sum(1 for _ in read_documents(find_sources(path)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 2000
    assert peak < size / 8
