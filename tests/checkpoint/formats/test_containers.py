"""Containers of `torch.save`, and such as it would not have written."""

import io
import struct
import zipfile

import pytest
import torch

from dsv3_plugin.checkpoint.formats.containers import open_saved
from dsv3_plugin.checkpoint.formats.pickles import PickleError

END = struct.Struct("<4s4H2LH")


@pytest.fixture
def saved():
    """A container with one storage."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(6.0)}, buffer)
    return bytearray(buffer.getvalue())


def directory(saved: bytearray) -> int:
    """Where its directory begins."""
    return END.unpack_from(saved, len(saved) - END.size)[6]


def test_what_torch_writes_is_found_as_zipfile_finds_it(saved):
    found = open_saved(b"before" + saved + b"behind", 6, len(saved))
    container = zipfile.ZipFile(io.BytesIO(saved))
    assert found.pickle == container.read("archive/data.pkl")
    begin, size = found.storages["0"]
    assert (b"before" + saved)[begin : begin + size] == container.read("archive/data/0")


def test_a_container_of_zipfile_is_found_too(saved):
    """Without the second end record of torch, and with a comment, which goes another way."""
    theirs = zipfile.ZipFile(io.BytesIO(saved))
    for comment in (b"", b"a remark"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as container:
            container.comment = comment
            for name in theirs.namelist():
                container.writestr(name, theirs.read(name))
        assert open_saved(buffer.getvalue()).pickle == theirs.read("archive/data.pkl")


def rename_in_the_record(data):
    data[data.index(b"data.pkl") + 4 : data.index(b"data.pkl") + 8] = b".PKL"


def rename_in_the_directory(data):
    at = data.index(b"data.pkl", directory(data))
    data[at : at + 8] = b"data.PKL"


def another_place(data):
    struct.pack_into("<L", data, directory(data) + 42, 8)


def more_records(data):
    struct.pack_into("<2H", data, len(data) - END.size + 8, 40, 40)


def fewer_records(data):
    struct.pack_into("<2H", data, len(data) - END.size + 8, 1, 1)


def another_directory(data):
    struct.pack_into("<L", data, len(data) - END.size + 16, directory(data) + 3)


def beyond_the_end(data):
    at = data.index(b"data/0", directory(data)) - len("archive/") - 46
    struct.pack_into("<2L", data, at + 20, 10**9, 10**9)


def another_content(data):
    data[data.index(b"weight")] ^= 1


def compressed(data):
    struct.pack_into("<H", data, directory(data) + 10, 8)


@pytest.mark.parametrize(
    "change",
    [
        rename_in_the_record, rename_in_the_directory, another_place, more_records, fewer_records,
        another_directory, beyond_the_end, another_content, compressed,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_a_container_whose_parts_disagree_is_refused(saved, change):
    change(saved)
    with pytest.raises(PickleError):
        open_saved(saved)


@pytest.mark.parametrize("length", [0, 3, 21, 100])
def test_a_container_that_is_cut_short_is_refused(saved, length):
    for part in (saved[:length], saved[len(saved) - length :]):
        with pytest.raises(PickleError):
            open_saved(part)
