"""The bytes of a distributed checkpoint: torch reads ours, we read torch's."""

import io
import mmap
import zipfile
import zlib

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.checkpoint.formats.dist_reader import Chunk, DistCheckpoint, assemble
from dsv3_plugin.checkpoint.formats.pickles import ForeignSymbolError
from dsv3_plugin.checkpoint.formats.torch_zip import Container, payload
from dsv3_plugin.checkpoint.inspect import inspect
from dsv3_plugin.checkpoint.names import layout, stacked_key
from tests.checkpoint.samples import (
    assert_same_bytes,
    random_tensors,
    read_tensors,
    small_model,
    write_folder,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.uint8,
          torch.int64]  # fmt: skip


def raw(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def mapped(path, data):
    path.write_bytes(data)
    with path.open("rb") as handle:
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(3,), (1, 5, 7), (64, 128)], ids=str)
def test_container_is_what_torch_saves(dtype, sizes, tmp_path):
    tensor = (torch.randn(sizes, generator=torch.Generator().manual_seed(0)) * 10).to(dtype)
    container, crc = Container(dtype, sizes), zlib.crc32(raw(tensor))
    data = container.head(crc) + raw(tensor) + container.tail(crc)
    assert (len(data), container.start % 64) == (container.length, 0)
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None  # checks every CRC-32
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    assert (loaded.dtype, loaded.shape, raw(loaded)) == (dtype, tensor.shape, raw(tensor))

    saved = io.BytesIO()
    torch.save(tensor, saved)
    for form in (data, saved.getvalue()):
        # Anywhere in a file, as in a .distcp.
        file = mapped(tmp_path / "f", b"before" + form + b"after")
        found = payload(file, 6, len(form))
        assert (found.dtype, found.sizes) == (dtype, sizes)
        assert file[found.position : found.position + len(raw(tensor))] == raw(tensor)


def test_payload_of_what_is_no_tensor(tmp_path):
    for content, error, said in (
        ({"a": torch.zeros(2)}, ValueError, "not a stored tensor"),
        ([1, 2], ValueError, "not a stored tensor"),
        (print, ForeignSymbolError, "print, which no checkpoint needs"),
    ):
        saved = io.BytesIO()
        torch.save(content, saved)
        with pytest.raises(error, match=said):
            payload(mapped(tmp_path / "f", saved.getvalue()), 0, len(saved.getvalue()))


def test_every_key_of_an_import_is_read_by_torchs_own_reader(tmp_path):
    model = small_model()
    tensors = random_tensors(model, "fp32")
    write_folder(tmp_path / "folder", model, tensors)
    import_hf(tmp_path / "folder", tmp_path / "checkpoint")
    reader = dcp.FileSystemReader(tmp_path / "checkpoint" / "release")
    stored = reader.read_metadata().state_dict_metadata
    state = {
        key: torch.empty(tuple(entry.size))
        for key, entry in stored.items()
        if hasattr(entry, "size")
    }
    dcp.load(state, storage_reader=reader, no_dist=True)
    for entry in layout(model):
        box = tuple(slice(a, a + n) for a, n in zip(entry.offset, entry.sizes, strict=True))
        for key in filter(None, (entry.key, entry.alias)):
            assert torch.equal(state[key][box].view(entry.shape), tensors[entry.name]), key


def test_any_layout_that_torch_wrote_is_read(tmp_path):
    """Views, transposes, and a second name: what other writers leave behind."""
    whole = torch.arange(60.0).view(6, 10)
    dcp.save(
        {"t": whole.t(), "v": whole[2:4], "s": torch.tensor(3.0)}, checkpoint_id=tmp_path / "c"
    )
    (tmp_path / "c" / "metadata.json").write_text("{}")
    checkpoint = DistCheckpoint(tmp_path / "c")
    assert torch.equal(checkpoint.read("t", (1, 2), (3, 4)), whole.t()[1:4, 2:6])
    assert torch.equal(checkpoint.read("v", (1, 0), (1, 10)), whole[3:4])
    assert checkpoint.shape("t") == (10, 6)


def test_layers_stacked_along_an_axis_and_a_padded_vocabulary_are_read(tmp_path):
    """What upstream writes for layers that are all of one kind, and for tensor parallelism."""
    model = small_model(num_layers=2, moe_layer_freq="[1,1]", mtp_num_layers=None)
    tensors = random_tensors(model, "fp32")
    whole: dict[str, torch.Tensor] = {}
    for entry in layout(model):
        key = entry.key
        box = tuple(slice(a, a + n) for a, n in zip(entry.offset, entry.sizes, strict=True))
        shape, sizes = entry.global_shape, entry.sizes
        if entry.shape[0] == model.vocab_size:
            shape = (shape[0] + 32, *shape[1:])
        if stacked := stacked_key(key):
            key, layer = stacked
            box, shape, sizes = (slice(layer, layer + 1), *box), (2, *shape), (1, *sizes)
        target = whole.setdefault(key, torch.full(shape, float("nan")))
        target[box] = tensors[entry.name].view(sizes)
    dcp.save(whole, checkpoint_id=tmp_path / "c" / "iter_0000007")
    (tmp_path / "c" / "iter_0000007" / "metadata.json").write_text("{}")
    (tmp_path / "c" / "latest_checkpointed_iteration.txt").write_text("7")
    model.write(tmp_path / "c" / "model.yaml")
    assert inspect(tmp_path / "c").complete
    export_hf(tmp_path / "c", tmp_path / "out")
    assert_same_bytes(read_tensors(tmp_path / "out"), tensors)


@given(
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    columns=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    data=st.data(),
)
@settings(max_examples=50)
def test_a_box_is_cut_from_any_grid_of_chunks(rows, columns, data):
    whole = torch.arange(sum(rows) * sum(columns)).view(sum(rows), sum(columns))
    chunks = []
    for i, height in enumerate(rows):
        for j, width in enumerate(columns):
            a, b = sum(rows[:i]), sum(columns[:j])
            piece = whole[a : a + height, b : b + width]
            chunks.append(Chunk((a, b), (height, width), piece.__getitem__))
    corner = [data.draw(st.integers(0, n - 1)) for n in whole.shape]
    sizes = tuple(
        data.draw(st.integers(1, n - c)) for n, c in zip(whole.shape, corner, strict=True)
    )
    box = tuple(slice(c, c + n) for c, n in zip(corner, sizes, strict=True))
    assert torch.equal(assemble(chunks, tuple(corner), sizes, torch.int64), whole[box])
    if len(chunks) > 1:
        with pytest.raises(ValueError, match="is not stored"):
            assemble(chunks[1:], (0, 0), tuple(whole.shape), torch.int64)
