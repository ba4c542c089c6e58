"""What is said of a machine's memory before a run."""

import pytest

from dsv3_plugin.launch import memory_here
from dsv3_plugin.launch.memory_here import beyond_memory
from dsv3_plugin.machine import Machine, memory_bytes
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.recipe.load import load_recipe

NO_GPU = Machine(gpus=0, transformer_engine=False)
GIB = 2**30


@pytest.fixture
def room(monkeypatch):
    def has(size: int | None):
        monkeypatch.setattr(memory_here, "memory_bytes", lambda: size)

    return has


def test_a_model_that_no_machine_holds_is_minded(room):
    room(64 * GIB)
    recipe = load_recipe("pretrain/tiny", ["model=deepseek-v3"])
    whole = 2 * make_plan(recipe, load_cluster("cpu"), NO_GPU).fullest.fullest.memory_total
    [said] = beyond_memory(recipe, NO_GPU)
    assert said == (
        f"by its plan 2 processes take {whole / 1e12:.1f} TB of memory, and this machine has "
        "68.7 GB: dsv3 plan says of what, and what would take less"
    )


@pytest.mark.parametrize("size", [GIB * 4, None])
def test_what_fits_or_is_not_known_is_not(room, size):
    room(size)
    assert [*beyond_memory(load_recipe("pretrain/tiny"), NO_GPU)] == []


ON_GPUS = ("host=gpu", "backend=transformer_engine", "precision.dtype=bf16")


@pytest.fixture
def smi(monkeypatch, tmp_path):
    """A function that lets nvidia-smi say how many MiB each GPU has."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def says(text: str):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{text}'\n", encoding="utf-8")
        (tmp_path / "nvidia-smi").chmod(0o755)

    return says


@pytest.mark.parametrize("cluster", [[], ["cluster=h100"], ["cluster=cpu"], ["cluster=nowhere"]])
def test_a_rank_that_no_gpu_holds_is_minded(room, smi, cluster):
    room(1)  # of the host, which is not counted
    machine = Machine(gpus=2, transformer_engine=True)
    recipe = load_recipe("pretrain/tiny", ["model=deepseek-v3", *ON_GPUS, *cluster])
    rank = make_plan(recipe, load_cluster("h100"), machine).fullest.fullest.memory_total
    smi("81559\n24576\n")
    [said] = beyond_memory(recipe, machine)
    assert said == (
        f"by its plan a rank takes {rank / 1e12:.1f} TB of a GPU's memory, and those of this "
        "machine have 25.8 GB: dsv3 plan says of what, and what would take less"
    )
    small = load_recipe("pretrain/tiny", [*ON_GPUS, *cluster])
    assert [*beyond_memory(small, machine)] == []


@pytest.mark.parametrize("said", ["", "[N/A]\n"])
def test_of_gpus_whose_memory_is_not_known_nothing_is_said(smi, said):
    smi(said)
    assert memory_here.gpu_bytes() is None
    recipe = load_recipe("pretrain/tiny", ["model=deepseek-v3", *ON_GPUS])
    assert [*beyond_memory(recipe, Machine(gpus=2, transformer_engine=True))] == []


def test_ranks_of_a_pipeline_are_counted_each(room):
    recipe = load_recipe("pretrain/tiny", ["parallel={pipeline: 2, expert: 1}"])
    plan = make_plan(recipe, load_cluster("cpu"), NO_GPU)
    whole = sum(rank.memory_total for rank in plan.fullest.ranks)
    room(int(whole))
    assert [*beyond_memory(recipe, NO_GPU)] == []
    room(int(whole) - 1)
    assert len([*beyond_memory(recipe, NO_GPU)]) == 1


def test_the_memory_of_a_machine_is_the_kernels():
    with open("/proc/meminfo", encoding="ascii") as lines:
        total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    assert 0 < memory_bytes() <= total
