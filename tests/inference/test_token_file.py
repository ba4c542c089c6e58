"""Token files: what is refused, and that nothing half-written appears."""

import re
from pathlib import Path

import numpy as np
import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.token_file import new_array, read_tokens


def write(path, array):
    np.save(path, array)
    return path


def read(path):
    return read_tokens(path, vocab_size=10, longest=8)


def test_reads_ids(tmp_path):
    ids = np.arange(10).reshape(2, 5)
    assert np.array_equal(read(write(tmp_path / "a.npy", ids)), ids)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 3), np.int32), r"int64 \[b, s\]: save tokens\.astype\('int64'\)\."),
        (np.zeros((2, 3)), r"int64 \[b, s\]: save as numpy\.save\('tokens\.npy'"),
        (np.zeros(3, np.int64), r"\[b, s\]: save tokens\[None\]\."),
        (np.zeros((0, 3), np.int64), "no tokens: its shape is .*; save one sequence"),
        (np.array(["def f"]), "holds text, and --tokens takes token ids: the model's tokenizer"),
        (np.zeros((1, 9), np.int64), r"9 tokens; the model takes 8: save tokens\[:, :8\]"),
        (np.full((1, 3), 10), "0 to 9: take the ids of its own tokenizer"),
        (np.full((1, 3), -1), "0 to 9"),
    ],
)
def test_refuses(tmp_path, array, said):
    with pytest.raises(UserError, match=said):
        read(write(tmp_path / "a.npy", array))


def test_refuses_other_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "none.npy")
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(UserError, match=r"holds no whole \.npy array of numbers"):
        read(tmp_path / "text.npy")
    (tmp_path / "empty.npy").touch()
    with pytest.raises(UserError, match=r"holds no whole \.npy array of numbers"):
        read(tmp_path / "empty.npy")
    np.savez(tmp_path / "many.npz", a=np.zeros(1))
    with pytest.raises(UserError, match=r"archive.*numpy.load\(.*many.npz.\)\[.a.\]"):
        read(tmp_path / "many.npz")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("17,4", "'17,4' is no file: --tokens takes the ids in one, as numpy.save"),
        ("[[17, 4]]", "is no file: --tokens takes the ids in one, as numpy.save"),
        (
            "def f(x):",
            "is no file, and --tokens takes one of token ids: the model's tokenizer makes",
        ),
        (
            "a " * 3000,
            "is no file, and --tokens takes one of token ids: the model's tokenizer makes",
        ),
        ("", ". is a folder: --tokens takes a file, as numpy.save('tokens.npy'"),
        ("no.npy", "no.npy does not exist: --tokens takes a file, as numpy.save('tokens.npy'"),
    ],
)
def test_what_is_no_file_is_told_how_one_is_made(typed, said):
    with pytest.raises(UserError, match=re.escape(said)):
        read(Path(typed))


def test_writes_whole_or_not_at_all(tmp_path):
    with new_array(tmp_path / "out.npy", (2, 3)) as array:
        array[:] = 7
    assert (np.load(tmp_path / "out.npy") == 7).all()
    with pytest.raises(RuntimeError), new_array(tmp_path / "other.npy", (2, 3)):
        raise RuntimeError
    with pytest.raises(UserError, match="cannot be written"), new_array(tmp_path / "no/x", (2,)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


@pytest.mark.parametrize(
    "shape", ["(1000000000000, 2)", "(-1, 2)", "(True, 2)", "(2,)*9", "(9.0, 2)"]
)
def test_a_shape_that_lies_is_refused(tmp_path, shape):
    path = tmp_path / "tokens.npy"
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(UserError):
        read_tokens(path, vocab_size=100, longest=8)
