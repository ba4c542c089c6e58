"""Interchange with an unmodified Megatron-LM: its trainer loads what import writes, and export
reads what its trainer saves. Upstream runs in processes of its own (see drive_upstream.py)."""

import os
import shlex
import socket
from pathlib import Path

import pytest
import torch

from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.checkpoint.conversion.verify import verify
from dsv3_plugin.checkpoint.inspect import inspect
from tests.checkpoint.samples import (
    assert_same_bytes,
    random_tensors,
    read_tensors,
    small_model,
    write_folder,
)
from tests.forked_programs import ForkedProcess

DRIVER = Path(__file__).with_name("drive_upstream.py")
MODEL = small_model(num_layers=3, moe_layer_freq="[0]*1+[1]*2")


def upstream(ranks: int, *words: object) -> None:
    """Runs the driver on so many ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks),
        "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # without which upstream divides no matrices
    }  # fmt: skip
    running = [
        ForkedProcess(
            [*map(str, words)],
            environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            program=str(DRIVER),
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    root = tmp_path_factory.mktemp("imported")
    tensors = random_tensors(MODEL, "bf16")
    write_folder(root / "folder", MODEL, tensors)
    import_hf(root / "folder", root / "checkpoint")
    return root


def test_upstreams_spec_loads_an_import_and_export_reads_its_save(imported, tmp_path):
    upstream(1, imported / "checkpoint" / "model.yaml", "upstream", imported / "checkpoint",
             tmp_path / "saved")  # fmt: skip
    # It trained in FP32 with a learning rate of zero: what it saved is what it had loaded.
    assert not verify(imported / "checkpoint", tmp_path / "saved").differences
    found = inspect(tmp_path / "saved")
    assert found.complete
    assert found.optimizer_bytes > 0
    # No model.yaml of ours is there: the model is read from upstream's arguments.
    export_hf(tmp_path / "saved", tmp_path / "out", dtype="bf16")
    assert_same_bytes(read_tensors(tmp_path / "out"), read_tensors(imported / "folder"))


def test_the_command_that_is_printed_loads_the_checkpoint(imported, tmp_path, dsv3):
    """As it stands, but for the program (the driver is one) and a step that changes nothing."""
    done = dsv3("args", imported / "checkpoint")
    assert "parallelism are free" in done.err
    program, *flags = done.out.replace(" \\\n", "\n").splitlines()
    assert program == "torchrun --nproc-per-node 1 pretrain_gpt.py"
    words = [word for flag in flags for word in shlex.split(flag)]
    assert words[words.index("--load") + 1] == str(imported / "checkpoint")
    upstream(1, imported / "checkpoint" / "model.yaml", "printed", imported / "checkpoint",
             tmp_path / "saved", *words)  # fmt: skip
    assert not verify(imported / "checkpoint", tmp_path / "saved").differences


def test_what_no_command_loads_is_refused(imported, tmp_path, dsv3):
    write_folder(tmp_path / "fp8", MODEL, random_tensors(MODEL, "fp8"))
    import_hf(tmp_path / "fp8", tmp_path / "kept", dtype="keep-fp8")
    assert "import them again without --dtype keep-fp8" in dsv3("args", tmp_path / "kept").err
    assert "is a checkpoint" in dsv3("args", imported / "checkpoint", "training.steps=1").err
    assert "is a Hugging Face folder" in dsv3("args", tmp_path / "fp8").err


def test_upstreams_spec_loads_an_import_from_fp8(tmp_path):
    # The scales that are kept for the way back lie beside the weights, and do not disturb upstream.
    write_folder(tmp_path / "folder", MODEL, random_tensors(MODEL, "fp8"))
    import_hf(tmp_path / "folder", tmp_path / "checkpoint")
    upstream(1, tmp_path / "checkpoint" / "model.yaml", "upstream", tmp_path / "checkpoint",
             tmp_path / "saved")  # fmt: skip
    export_hf(tmp_path / "checkpoint", tmp_path / "expected", dtype="bf16")
    export_hf(tmp_path / "saved", tmp_path / "out", dtype="bf16")
    expected, out = read_tensors(tmp_path / "expected"), read_tensors(tmp_path / "out")
    assert out.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(out[name], tensor), name  # not by bytes: a step of 0 makes 0 of -0


def test_our_spec_on_a_pipeline_with_a_distributed_optimizer(imported, tmp_path):
    flags = "--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout Ett|tmL --bf16 "
    flags += "--use-distributed-optimizer --dist-ckpt-optim-fully-reshardable"
    upstream(2, imported / "checkpoint" / "model.yaml", "ours", imported / "checkpoint",
             tmp_path / "saved", *flags.split())  # fmt: skip
    export_hf(tmp_path / "saved", tmp_path / "out", dtype="bf16")
    assert_same_bytes(read_tensors(tmp_path / "out"), read_tensors(imported / "folder"))
    # An iteration's own folder does as well, and so does a quantised export of it.
    export_hf(tmp_path / "saved" / "iter_0000001", tmp_path / "fp8", fp8=True)
    assert inspect(tmp_path / "fp8").complete


def test_our_spec_on_ranks_that_divide_matrices_and_experts(imported, tmp_path):
    """Tensor and expert parallelism of an import that knew of neither: whole, it is what it was."""
    flags = "--tensor-model-parallel-size 2 --sequence-parallel --expert-model-parallel-size 2 "
    flags += "--expert-tensor-parallel-size 1"
    upstream(2, imported / "checkpoint" / "model.yaml", "ours", imported / "checkpoint",
             tmp_path / "saved", *flags.split())  # fmt: skip
    assert not verify(imported / "checkpoint", tmp_path / "saved").differences
    export_hf(tmp_path / "saved", tmp_path / "out", dtype="bf16")
    assert_same_bytes(read_tensors(tmp_path / "out"), read_tensors(imported / "folder"))
