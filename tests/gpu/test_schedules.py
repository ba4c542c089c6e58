"""The executor on GPUs over NCCL: every gradient of every schedule, against one GPU.

The same step as tests/pipeline/test_executor.py takes on CPU tensors.
"""

import pytest

from dsv3_plugin.schedules.registry import SCHEDULES
from tests.gpu.nccl_ranks import run_ranks
from tests.pipeline.executed import all_schedules, must_be_of_one_process, references

# FP32 on both; a product of another shape may be summed in another order.
NEAR = {"losses": 1e-5, "gradients": 1e-4}


def all_on(devices: int, micro_batches: int) -> list:
    """Every schedule, with overlapped pairs and without, of eight stages at most."""
    kinds = (kind for kind in SCHEDULES.values() if not kind.searched)
    return [schedule for kind in kinds for schedule in kind.forms(devices, micro_batches)]


@pytest.mark.usefixtures("two_gpus")
def test_two_devices(tmp_path):
    schedules = all_on(2, 6)
    [reference] = run_ranks(1, references, schedules, scratch=tmp_path)
    ranks = run_ranks(2, all_schedules, schedules, scratch=tmp_path)
    must_be_of_one_process(schedules, reference, ranks, **NEAR)


@pytest.mark.usefixtures("four_gpus")
def test_four_devices(tmp_path):
    schedules = all_on(4, 8)
    [reference] = run_ranks(1, references, schedules, scratch=tmp_path)
    ranks = run_ranks(4, all_schedules, schedules, scratch=tmp_path)
    must_be_of_one_process(schedules, reference, ranks, **NEAR)
