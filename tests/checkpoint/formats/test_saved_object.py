"""What `torch.save` wrote comes back as it went in, if it is of a kind that a checkpoint needs."""

import argparse
import io
import pathlib
import random
import signal
import zipfile
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from megatron.core.rerun_state_machine import RerunDiagnostic, RerunMode, RerunState
from megatron.core.transformer.enums import AttnBackend, CudaGraphScope

from dsv3_plugin.checkpoint.formats import symbols
from dsv3_plugin.checkpoint.formats.pickles import ForeignSymbolError, PickleError, Symbol
from dsv3_plugin.checkpoint.formats.saved_object import load_saved


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return bytearray(file.getvalue())


def test_what_upstream_keeps_comes_back():
    content = {
        "args": argparse.Namespace(
            backend=AttnBackend.auto,
            scopes=[CudaGraphScope.attn],
            signal=signal.SIGTERM,
            dtype=torch.bfloat16,
            device=torch.device("cpu"),
            path=pathlib.PosixPath("a/b"),
            nothing=None,
        ),
        "rerun": [*RerunMode, *RerunState, *RerunDiagnostic],
        "random": random.getstate(),
        "groups": OrderedDict(lr=1e-3, betas=(0.9, 0.95), keys={1, "b"}, frozen=frozenset({2})),
        "sizes": [torch.Size([2, 3]), 1 << 60, -1, 3 + 4j, b"bytes", b"", bytearray(b"more")],
        (torch.float32, "key"): SimpleNamespace(a=1),
    }
    assert load_saved(saved(content), "f") == content


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).view(3, 4),
        torch.arange(12).view(3, 4).t()[1:3],
        torch.tensor(3, dtype=torch.bfloat16),
        torch.zeros(0, 5),
        torch.ones(3).to(torch.float8_e4m3fn),
        torch.nn.Parameter(torch.ones(2)),
        torch.get_rng_state(),
    ],
    ids=lambda tensor: str(tuple(tensor.shape)),
)
def test_tensors_come_back(tensor):
    (loaded,) = load_saved(saved([tensor]), "f")
    assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(loaded.float(), tensor.float())


@pytest.mark.parametrize(
    "array",
    [np.random.get_state()[1], np.arange(6.0).reshape(2, 3).T, np.zeros(0, np.int8)],
    ids=["state", "columns", "empty"],
)
def test_arrays_come_back(array):
    loaded, scalar = load_saved(saved([array, np.float32(2.5)]), "f")
    assert np.array_equal(loaded, array)
    assert (loaded.dtype, scalar) == (array.dtype, np.float32(2.5))


def test_a_generator_and_a_file_in_memory_come_back():
    generator = torch.Generator().manual_seed(7)
    loaded, file = load_saved(saved([generator, io.BytesIO(b"abc")]), "f")
    assert torch.equal(loaded.get_state(), generator.get_state())
    assert file.read() == b"abc"


def test_what_nothing_makes_is_not_allowed():
    """A symbol that may be named is made here, or stands for a class of tensors or numbers."""
    for symbol in symbols.OBJECTS - symbols.TENSORS - {symbols.ARRAY}:
        with pytest.raises(PickleError):
            load_saved(zipped(b"\x80\x04" + named(symbol) + b"."), "f")


def named(symbol):
    parts = (part.encode() for part in symbol)
    return b"".join(b"\x8c" + bytes([len(part)]) + part for part in parts) + b"\x93"


def zipped(pickle, **records):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as container:
        for name, data in {"data.pkl": pickle, **records}.items():
            container.writestr(f"archive/{name}", data)
    return bytearray(file.getvalue())


def call(module, name, arguments):
    return b"\x80\x04" + named(Symbol(module, name)) + arguments + b"R."


def laughs():
    """9^30 values in a few hundred bytes."""
    value: list = []
    for _ in range(30):
        value = [value] * 9
    return value


HUGE = b"\x8a\x08" + (1 << 50).to_bytes(8, "little")


def tensor_pickle(numel: int, sizes: bytes, stride: bytes) -> bytes:
    storage = b"(\x8c\x07storage" + named(Symbol("torch", "FloatStorage")) + b"\x8c\x010\x8c\x03cpu"
    number = b"\x8a\x08" + numel.to_bytes(8, "little")
    return (
        b"\x80\x04" + named(symbols.REBUILD_V2) + b"(" + storage + number + b"tQK\x00" + sizes
        + stride + b"\x89NtR."
    )  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(zipped(call("builtins", "bytearray", HUGE + b"\x85")), id="zeros"),
        pytest.param(zipped(call("builtins", "bytes", HUGE + b"\x85")), id="bytes"),
        pytest.param(zipped(b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b"."), id="deep"),
        pytest.param(zipped(b"\x80\x04]\x94h\x00a."), id="itself"),
        pytest.param(saved(laughs()), id="laughs"),
        pytest.param(zipped(call("_codecs", "encode", b"\x8c\x01a\x8c\x03zip\x86")), id="codec"),
        pytest.param(
            zipped(tensor_pickle(1 << 50, HUGE + b"\x85", b"K\x01\x85"), **{"data/0": bytes(8)}),
            id="storage that lies",
        ),
        pytest.param(
            zipped(tensor_pickle(2, HUGE + b"\x85", b"K\x00\x85"), **{"data/0": bytes(8)}),
            id="one value a great many times",
        ),
        pytest.param(
            zipped(tensor_pickle(2, b"K\x02\x85", b"K\x07\x85"), **{"data/0": bytes(8)}),
            id="beyond its bytes",
        ),
        pytest.param(b"no container", id="none"),
        pytest.param(b"", id="empty"),
    ],
)
def test_what_would_cost_too_much_or_is_damaged_is_refused(data):
    with pytest.raises(PickleError):
        load_saved(data, "f")


def test_attributes_with_pythons_names_are_refused():
    evil = argparse.Namespace()
    vars(evil)["__init__"] = 1
    with pytest.raises(PickleError, match="attribute"):
        load_saved(saved([evil]), "f")


def test_containers_that_torch_does_not_write_are_refused():
    pickle = b"\x80\x04N."
    twice, packed = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(twice, "w") as container:
        container.writestr("archive/data.pkl", pickle)
        container.writestr("other/data.pkl", call("posix", "system", b")"))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as container:
        container.writestr("archive/data.pkl", pickle + bytes(10_000))
    for file in (twice, packed):
        with pytest.raises(PickleError, match="compressed or there twice"):
            load_saved(bytearray(file.getvalue()), "f")


def test_what_could_run_code_is_named():
    with pytest.raises(ForeignSymbolError, match=r"^f names posix\.system,"):
        load_saved(zipped(call("posix", "system", b"\x8c\x04true\x85")), "f")
