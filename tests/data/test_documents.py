"""Documents: what is read of each format, and what is said when it cannot be."""

import gzip
import json
import random
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from dsv3_plugin.data.corpus import find_sources
from dsv3_plugin.data.documents import read_documents
from dsv3_plugin.data.forms import TextForm
from dsv3_plugin.data.left_out import Tally
from dsv3_plugin.errors import UserError


def texts(corpus, text_key="text"):
    return [document.text for document in read_documents(find_sources(corpus), TextForm(text_key))]


def write_jsonl(path: Path, values) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def write_parquet(path: Path, **columns) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


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
    documents = list(read_documents(find_sources(path), TextForm("body")))

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


def test_a_byte_order_mark_is_never_part_of_a_text(tmp_path):
    mark = "\ufeff"
    contents = {
        "a.txt": f"{mark}one\n{mark}two {mark}\n",  # as files are after `cat`
        "b.jsonl": f'{mark}{{"text": "{mark}three"}}\n{mark}{{"text": "four"}}\n',
        "c.json": f'{mark}[{{"text": "five"}}]',
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    write_parquet(tmp_path / "d.parquet", text=[f"{mark}six"])

    assert [texts(tmp_path / name)[0] for name in sorted(contents)] == [
        "one\ntwo \n", "three", "five",
    ]  # fmt: skip
    assert texts(tmp_path) == ["one\ntwo \n", "three", "four", "five", "six"]


def test_json_of_one_value_and_zstandard(tmp_path):
    rows = [{"text": "one"}, {"text": "two"}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "b.json").write_text(json.dumps(rows[0], indent=2))
    lines = write_jsonl(tmp_path / "c.jsonl", rows).read_bytes()
    half = lines.index(b"\n") + 1
    (tmp_path / "d.jsonl.zst").write_bytes(  # of two frames, as parallel compressors write
        b"".join(
            pyarrow.compress(part, "zstd", asbytes=True) for part in (lines[:half], lines[half:])
        )
    )
    assert texts(tmp_path) == ["one", "two", "one", "one", "two", "one", "two"]
    (tmp_path / "d.jsonl.zst").write_bytes((tmp_path / "d.jsonl.zst").read_bytes()[:-5])
    with pytest.raises(UserError, match=r"cannot read .*d.jsonl.zst"):
        texts(tmp_path)


def test_bad_rows_are_skipped_where_that_is_asked_for(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(
        b'{"text": "one"}\nnot JSON\n{"text": 5}\n{"text": "\xff"}\n{"text": ""}\n{"text": "two"}\n'
    )
    (tmp_path / "d.txt").write_bytes(b"\xff")
    (tmp_path / "e.jsonl.gz").write_bytes(
        gzip.compress(b'{"text": "three"}\n' + random.Random(0).randbytes(9999))[:-99]
    )
    write_parquet(tmp_path / "f.parquet", text=[None, "four"])
    tally = Tally()
    sources = find_sources(tmp_path)
    read = read_documents(sources, on_bad_row="skip", left_out=tally)

    assert [document.text for document in read] == ["one", "two", "three", "four"]
    empty, bad = sorted(tally.all(), key=lambda of: of.count)
    assert (empty.count, empty.things, empty.why) == (1, "documents", "empty")
    assert bad.things == "rows"
    assert "line 2 is not JSON" in bad.examples[0]
    with pytest.raises(UserError, match=r"line 2 is not JSON.*--on-bad-row skip"):
        list(read_documents(sources))


def test_a_missing_key_names_the_way_out(tmp_path):
    path = write_jsonl(tmp_path / "c.jsonl", [{f"key{i:02}": "x" * 99 for i in range(30)}])
    with pytest.raises(
        UserError, match=r"key07 and 22 more\): name it by --text-key .*data.text_key"
    ):
        texts(path)
