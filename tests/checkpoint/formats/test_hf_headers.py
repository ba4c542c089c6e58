"""Headers and indexes that lie are refused by a sentence, whatever they say."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.checkpoint.formats.hf_headers import INDEX, read_folder, read_header
from dsv3_plugin.errors import UserError


def written(folder, header, data=b"", name="model.safetensors", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path = folder / name
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def entry(shape=(1,), offsets=(0, 4), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_header_that_tells_the_truth_is_read(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "b": entry(offsets=(4, 8)), "a": entry()}
    tensors = read_header(written(tmp_path, header, b"\0" * 8))
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"a": (1,), "b": (1,)}


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ({"a": entry(shape=(1.0,))}, "its shape or place is no list of sizes"),
        ({"a": entry(shape=(True,))}, "its shape or place is no list of sizes"),
        ({"a": entry(shape=(-1, -1))}, "its shape or place is no list of sizes"),
        ({"a": entry(shape=(2**70,))}, "its shape or place is no list of sizes"),
        ({"a": entry(shape=[1] * 1000)}, "its shape or place is no list of sizes"),
        ({"a": entry(offsets=(0.0, 4.0))}, "its shape or place is no list of sizes"),
        ({"a": entry(offsets=(False, 4))}, "its shape or place is no list of sizes"),
        ({"a": entry(offsets=(-4, 0))}, "its shape or place is no list of sizes"),
        ({"a": entry(offsets=(4, 0))}, "does not take the -4 bytes"),
        ({"a": entry(offsets=(0, 4, 8))}, "header is damaged"),
        ({"a": entry(offsets=(0, 10**30))}, "no list of sizes"),
        ({"a": entry(), "b": entry()}, "does not begin where the tensor before it ends"),
        ({"a": entry(dtype="F99")}, "unsupported type F99"),
        ({"a": entry(dtype=["F32"])}, "header is damaged"),
        ({"a": 1}, "header is damaged"),
        ([], "header is damaged"),
        (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', "header is damaged"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            b' "a": {"dtype": "I32", "shape": [1], "data\\u005foffsets": [0, 4]}}',
            "a is stored twice",
        ),
        (b'{"a": ' + b"[" * 100_000, "nested deeper than 64 levels"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, sentence):
    with pytest.raises(UserError) as refused:
        read_header(written(tmp_path, header, b"\0" * 4))
    assert sentence in str(refused.value)


@pytest.mark.parametrize("length", [0, 2**63, 2**64 - 1, 10**6])
def test_a_length_that_lies_is_refused(tmp_path, length):
    with pytest.raises(UserError, match="its header is cut short"):
        read_header(written(tmp_path, {"a": entry()}, b"\0" * 4, length=length))


def test_a_name_forges_no_line(tmp_path):
    with pytest.raises(UserError) as refused:
        read_header(written(tmp_path, {"a\ncomplete: all good\x1b[2K": entry(dtype="F99")}))
    assert r"a\ncomplete: all good\x1b[2K in " in str(refused.value)


NUMBERS = st.integers(-5, 9) | st.sampled_from([2**62, 2**63, 10**40, 1.5, True, None, "4", []])
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8", "F4", 3, None, ["F32"]]),
        "shape": st.lists(NUMBERS, max_size=3) | NUMBERS,
        "data_offsets": st.lists(NUMBERS, max_size=3) | NUMBERS,
    },
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "\n"]), ENTRIES | NUMBERS)
    | st.binary(max_size=50)
    | NUMBERS
)
@settings(max_examples=120)
def test_any_header_is_read_or_refused(tmp_path_factory, header):
    folder = tmp_path_factory.mktemp("any")
    with contextlib.suppress(UserError):
        read_header(written(folder, header, b"\0" * 4))


FILES = st.sampled_from(
    ["model.safetensors", "../model.safetensors", "/etc/passwd", "..", "", "\0", "x" * 300, 1, None]
)


@given(
    st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(max_size=2), FILES) | NUMBERS})
    | NUMBERS
)
@settings(max_examples=80)
def test_any_index_is_read_or_refused(tmp_path_factory, index):
    folder = tmp_path_factory.mktemp("any")
    written(folder, {"a": entry()}, b"\0" * 4)
    (folder / INDEX).write_text(json.dumps(index))
    with contextlib.suppress(UserError, OSError):  # OSError: a name too long for any file
        assert {*read_folder(folder)} == {"a"}


@pytest.mark.parametrize(
    "file",
    ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "m\0.safetensors", "\ud800"],
    ids=ascii,
)
def test_an_index_that_leaves_the_folder_is_refused(tmp_path, file):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(UserError, match="maps no tensors to files of its folder"):
        read_folder(tmp_path)
