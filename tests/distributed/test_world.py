"""What a rank arranges before it joins the others."""

import datetime
import os
from types import SimpleNamespace

import pytest
import torch

from dsv3_plugin.distributed import world
from dsv3_plugin.distributed.world import order_kernels
from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.load import load_recipe

UPSTREAMS = ("pipeline.schedule=1f1b", "pipeline.ramp_schedule=null", "pipeline.layout=balanced")
"""Overrides with which upstream's executor runs the full recipe."""


@pytest.mark.parametrize("degree", ["tensor", "context"])
def test_what_upstream_wants_of_the_environment_is_set(monkeypatch, degree):
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    order_kernels(load_recipe("pretrain/deepseek-v3", UPSTREAMS))
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in os.environ
    divided = load_recipe("pretrain/deepseek-v3", [*UPSTREAMS, f"parallel.{degree}=2"])
    order_kernels(divided)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    order_kernels(divided)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "8"


def test_streams_of_the_executor_have_queues_of_their_own(monkeypatch):
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    order_kernels(load_recipe("pretrain/deepseek-v3"))
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"


class Gpus:
    """The GPUs of a machine, as torch.cuda shows them to one process after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.visible: list[str] = []
        self.chosen: int | None = None
        self.monkeypatch = monkeypatch
        self.store = torch.distributed.HashStore()
        properties = {"get_device_properties": lambda n: SimpleNamespace(uuid=self.visible[n])}
        for name, answer in {
            "device_count": lambda: len(self.visible),
            "set_device": lambda number: setattr(self, "chosen", number),
            "current_device": lambda: self.chosen,
            **properties,
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
        monkeypatch.setattr(
            world.distributed_c10d, "_get_default_store", lambda: self.store, raising=True
        )

    def join(self, rank: int, visible: list[str]) -> str:
        """Be a rank that sees these GPUs; the one it takes."""
        self.visible, self.chosen = visible, None
        self.monkeypatch.setenv("RANK", str(rank))
        self.monkeypatch.setenv("WORLD_SIZE", "8")
        world.join("nccl", rank, datetime.timedelta(minutes=1))
        return visible[self.chosen]


ALL = [f"GPU-{number}" for number in range(8)]


def test_ranks_take_their_own_of_all_gpus(monkeypatch):
    gpus = Gpus(monkeypatch)
    assert [gpus.join(rank, ALL) for rank in range(8)] == ALL


def test_ranks_that_see_one_gpu_each_take_it(monkeypatch):
    """As under `srun --gpus-per-task=1`: local ranks up to 7, and one GPU, which is number 0."""
    gpus = Gpus(monkeypatch)
    assert [gpus.join(rank, [ALL[rank]]) for rank in range(8)] == ALL


@pytest.mark.parametrize("visible", [0, 1, 2])
def test_a_rank_too_many_is_refused(monkeypatch, visible):
    gpus = Gpus(monkeypatch)
    for rank in range(visible):
        gpus.join(rank, ALL[:visible])
    with pytest.raises(UserError, match=f"rank {visible} has no GPU: torch sees {visible} on this"):
        gpus.join(visible, ALL[:visible])
