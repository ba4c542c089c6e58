"""What is added to the environment of a rank on a GPU, and what of it is the user's to say."""

import inspect
from pathlib import Path

import pytest
import torch
from megatron.training import initialize

from dsv3_plugin.distributed.device_environment import device_environment


def test_segments_grow_and_the_flight_recorder_writes_into_the_run():
    assert device_environment({}, Path("/runs/v3/logs/flight_recorder")) == {
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCH_FR_DUMP_TEMP_FILE": "/runs/v3/logs/flight_recorder/rank_",
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }


@pytest.mark.parametrize(
    ("name", "untouched"),
    [
        ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
        ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
        ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_FR_DUMP_TEMP_FILE"),
        ("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_FR_DUMP_TEMP_FILE"),
        ("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_FR_BUFFER_SIZE"),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_DUMP_ON_TIMEOUT"),
    ],
)
@pytest.mark.parametrize("value", ["", "0", "max_split_size_mb:512"])
def test_what_is_set_stays(name, untouched, value):
    added = device_environment({name: value}, Path("/runs/v3"))
    assert name not in added
    assert untouched not in added
    assert len(added) == 3


def test_a_folder_is_named_whole():
    # A rank may change its folder before a collective times out.
    added = device_environment({}, Path("runs/v3"))
    assert added["TORCH_FR_DUMP_TEMP_FILE"] == str(Path.cwd() / "runs/v3/rank_")


def test_the_names_are_those_that_torch_and_upstream_read():
    root = Path(torch.__file__).parent
    headers = root / "include" / "torch" / "csrc" / "distributed" / "c10d"
    read = (headers / "FlightRecorder.hpp").read_text()
    read += (headers / "ProcessGroupNCCL.hpp").read_text()
    read += inspect.getsource(initialize)
    read += (root / "lib" / "libc10.so").read_bytes().decode("ascii", "ignore")
    assert all(name in read for name in device_environment({}, Path("/runs")))
