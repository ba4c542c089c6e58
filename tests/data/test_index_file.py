"""Indexes: what they say is borne out by the data, or refused before anything is allocated."""

import struct
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from dsv3_plugin.data import index_file
from dsv3_plugin.data.index_file import Index, read_index
from dsv3_plugin.errors import UserError


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    """Three documents of five sequences, as upstream writes them."""
    prefix = tmp_path_factory.mktemp("index") / "a.b"
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.uint16)
    for lengths in ((3, 2), (4,), (1, 6)):
        builder.add_document(numpy.arange(sum(lengths)), lengths)
    builder.finalize(f"{prefix}.idx")
    return prefix


def test_an_index_is_what_upstream_wrote(prefix, monkeypatch):
    assert read_index(prefix) == Index(sequences=5, documents=3, tokens=16, token_bytes=2)
    monkeypatch.setattr(index_file, "_AT_ONCE", 2)  # in pieces
    assert read_index(prefix) == Index(sequences=5, documents=3, tokens=16, token_bytes=2)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, b"X", "header is another one"),
        (9, struct.pack("<Q", 2), "header is another one"),
        (17, b"\x07", "header is another one"),  # tokens that are no whole numbers
        (17, b"\x01", "tokens of 1 bytes, where the data have 2 for each"),
        (18, struct.pack("<Q", 2**62), "bytes instead of"),
        (18, struct.pack("<QQ", 2**64 - 1, 2**64 - 1), "bytes instead of"),
        (34, struct.pack("<i", -1), "longer than the data"),
        (34, struct.pack("<i", 17), "longer than the data"),
        (34 + 5 * 4, struct.pack("<q", -2), "outside the data"),
        (34 + 5 * 4, struct.pack("<q", 2**63 - 1), "outside the data"),
        (34 + 5 * 4, struct.pack("<q", 28), "outside the data"),
        (34 + 5 * 12, struct.pack("<q", 1), "outside the sequences"),
        (34 + 5 * 12 + 8, struct.pack("<q", 2**63 - 1), "outside the sequences"),
        (34 + 5 * 12 + 8, struct.pack("<q", 4), "out of order"),
        (34 + 5 * 12 + 24, struct.pack("<q", 4), "not its sequences"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),
)
def test_a_lie_is_told(prefix, tmp_path, place, value, said):
    with pytest.raises(UserError, match=rf"a.b.idx does not describe a.b.bin \(.*{said}"):
        read_index(altered(prefix, tmp_path, place, value), of_all=True)


@given(place=st.integers(0, 125), value=st.binary(min_size=1, max_size=16))
def test_what_is_taken_upstream_can_read(prefix, tmp_path_factory, place, value):
    copy = altered(prefix, tmp_path_factory.getbasetemp(), place, value)
    try:
        index = read_index(copy)
    except UserError:
        return
    upstream = IndexedDataset(str(copy))
    assert len(upstream) == index.sequences
    assert sum(len(upstream[i]) for i in range(len(upstream))) == index.tokens
    assert upstream.document_indices[-1] == index.sequences


@given(content=st.binary(max_size=200))
def test_anything_else_is_refused(tmp_path_factory, content):
    prefix = tmp_path_factory.getbasetemp() / "any"
    prefix.with_name("any.bin").write_bytes(b"")
    prefix.with_name("any.idx").write_bytes(content)
    with pytest.raises(UserError, match="does not describe"):
        read_index(prefix)


def test_a_missing_part_is_named(prefix, tmp_path):
    copy = altered(prefix, tmp_path, 0, b"M")
    copy.with_name("a.b.bin").unlink()
    with pytest.raises(UserError, match=r"cannot read .*a.b.bin"):
        read_index(copy)


def altered(prefix: Path, folder: Path, place: int, value: bytes) -> Path:
    """A copy of a dataset whose index has other bytes in one place."""
    copy = folder / "a.b"
    index = prefix.with_name("a.b.idx").read_bytes()
    copy.with_name("a.b.idx").write_bytes(index[:place] + value + index[place + len(value) :])
    copy.with_name("a.b.bin").write_bytes(prefix.with_name("a.b.bin").read_bytes())
    return copy
