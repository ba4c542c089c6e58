"""Pickled weights: refused unless asked for, and never run."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file

from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.checkpoint.conversion.verify import verify
from dsv3_plugin.checkpoint.inspect import inspect
from dsv3_plugin.errors import UserError
from tests.checkpoint.conversion.damage import FIRST, INDEX, PICKLE_INDEX, SECOND, refused


def test_pickles_are_refused_unless_asked_for(source, tmp_path):
    tensors = load_file(source / FIRST) | load_file(source / SECOND)
    for file in (FIRST, SECOND, INDEX):
        (source / file).unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    refused(source, tmp_path / "t", "pytorch_model.bin", "--allow-pickle")
    import_hf(source, tmp_path / "t", allow_pickle=True)
    export_hf(tmp_path / "t", tmp_path / "out")
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(out[name], tensor) for name, tensor in tensors.items())


@pytest.fixture
def pickled(source):
    """The folder with its weights in two pickles and an index, and what a training leaves."""
    index = {}
    for number, file in enumerate((FIRST, SECOND), start=1):
        tensors = load_file(source / file)
        (source / file).unlink()
        torch.save(tensors, source / f"pytorch_model-{number:05d}-of-00002.bin")
        index |= dict.fromkeys(tensors, f"pytorch_model-{number:05d}-of-00002.bin")
    (source / INDEX).unlink()
    (source / PICKLE_INDEX).write_text(json.dumps({"weight_map": index}))
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        torch.save({"state": {"lr": 1.0}}, source / name)
    return source


@pytest.mark.parametrize("index", [True, False])
def test_pickles_beside_the_weights_are_passed_over(pickled, checkpoint, tmp_path, index):
    if not index:
        (pickled / PICKLE_INDEX).unlink()
    import_hf(pickled, tmp_path / "t", allow_pickle=True)
    assert not verify(pickled, checkpoint, allow_pickle=True).differences
    with pytest.raises(UserError, match="--allow-pickle"):
        verify(pickled, checkpoint)


def test_weights_pickled_under_another_name(pickled, tmp_path):
    (pickled / PICKLE_INDEX).unlink()
    for number, file in enumerate(sorted(pickled.glob("pytorch_model*.bin"))):
        file.rename(pickled / f"part-{number}.pt")
    import_hf(pickled, tmp_path / "t", allow_pickle=True)


def test_missing_pickled_shard_is_named(pickled, tmp_path):
    (pickled / "pytorch_model-00002-of-00002.bin").unlink()
    refused(pickled, tmp_path / "t", "pytorch_model-00002-of-00002.bin is missing", PICKLE_INDEX,
            "says it holds model.", allow_pickle=True)  # fmt: skip


def test_pickles_of_an_old_torch_are_read(pickled, checkpoint, tmp_path):
    for file in pickled.glob("pytorch_model*.bin"):
        content = torch.load(file)
        torch.save(content, file, _use_new_zipfile_serialization=False)
    import_hf(pickled, tmp_path / "t", allow_pickle=True)
    assert not verify(tmp_path / "t", checkpoint).differences


def test_pickle_that_is_damaged_says_how(pickled, tmp_path):
    file = pickled / "pytorch_model-00001-of-00002.bin"
    file.write_bytes(b"no pickle at all")
    refused(pickled, tmp_path / "t", f"{file} cannot be read as tensors only: ", "eights",
            allow_pickle=True)  # fmt: skip


def test_inspect_says_that_weights_are_pickled(pickled, dsv3):
    found = inspect(pickled)
    assert found.pickled == [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    assert not found.complete
    assert not found.missing
    assert "Hugging Face folder, pickled" in dsv3("inspect", pickled).out


def test_verify_takes_allow_pickle(pickled, checkpoint, dsv3):
    assert dsv3("verify", pickled, checkpoint, "--allow-pickle").code == 0


class Evil:
    """What a pickle can do: create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_runs_code_is_refused_even_then(source, tmp_path):
    for file in (FIRST, SECOND, INDEX):
        (source / file).unlink()
    torch.save({"x": Evil(tmp_path / "run")}, source / "pytorch_model.bin")
    refused(source, tmp_path / "t", "pytorch_model.bin", allow_pickle=True)
    assert not (tmp_path / "run").exists()


def test_metadata_that_runs_code_is_not_run(checkpoint, tmp_path):
    (checkpoint / "release" / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "run")))
    with pytest.raises(UserError, match=r"\.metadata names _io\.open"):
        export_hf(checkpoint, tmp_path / "out")
    assert not (tmp_path / "run").exists()
