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


def test_a_machine_with_gpus_is_not_looked_at(room):
    room(1)
    recipe = load_recipe("pretrain/tiny", ["model=deepseek-v3", "host=gpu"])
    assert [*beyond_memory(recipe, Machine(gpus=2, transformer_engine=False))] == []


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
