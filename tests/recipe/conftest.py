"""Upstream's own parser and validation, which the command lines of recipes are held against."""

import sys

import pytest

from dsv3_plugin.machine import Machine
from dsv3_plugin.model import SPEC
from dsv3_plugin.recipe.arguments import megatron_arguments

LAPTOP = Machine(gpus=0, transformer_engine=False)


@pytest.fixture
def upstream(monkeypatch):
    """Upstream's parse-and-validate for a recipe, as one rank of its world would run it."""
    from dsv3_plugin.upstream import cpu_host

    cpu_host.enable()
    import torch
    from megatron.training import arguments

    from dsv3_plugin.distributed.world import order_kernels

    # Grouped GEMMs are refused without a GPU of this generation.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))

    def run(recipe, machine=LAPTOP):
        argv = megatron_arguments(recipe, machine, SPEC)
        monkeypatch.setattr(sys, "argv", ["dsv3", *argv])
        monkeypatch.setenv("WORLD_SIZE", str(recipe.parallel.processes))
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "")  # what comes is taken back
        monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
        order_kernels(recipe)
        args = arguments.parse_args()
        arguments.validate_args(args)
        return args

    return run
