"""Memory that a run takes on this machine, of its processors or of its GPUs, by its plan, before it
begins."""

import subprocess
from collections.abc import Iterator

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine, memory_bytes
from dsv3_plugin.numbers import bytes_text, number_of
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.memory.of_recipe import rank_memories
from dsv3_plugin.planner.phases import largest_batches, phases_of
from dsv3_plugin.planner.recipe_schedules import searches
from dsv3_plugin.planner.resolve import resolve
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps
from dsv3_plugin.recipe.schema import Recipe

_ON_PROCESSORS = "cpu"
"""The cluster by which such a run is planned, whatever it will be launched on."""


_ON_GPUS = "h100"
"""The cluster by which a run on GPUs is planned whose own has none, or is not there."""
_SMI = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
_PATIENCE_S = 10
"""For nvidia-smi, which hangs where a device does."""


def beyond_memory(recipe: Recipe, machine: Machine) -> Iterator[str]:
    """A sentence where all ranks together take more memory than the machine has, or on GPUs the
    fullest more than a GPU has.

    What has a schedule to be searched for is not looked at: that takes long.
    """
    if searches(recipe):
        return
    if recipe.on_gpu(machine):
        card = gpu_bytes()
        if card is not None and (taken := _fullest(recipe, machine)) > card:
            yield (
                f"by its plan a rank takes {bytes_text(taken)} of a GPU's memory, and those of "
                f"this machine have {bytes_text(card)}: dsv3 plan says of what, and what would "
                "take less"
            )
        return
    room = memory_bytes()
    if room is not None and (taken := _taken(recipe, machine)) > room:
        yield (
            f"by its plan {number_of(recipe.parallel.processes, 'process', 'processes')} take "
            f"{bytes_text(taken)} of memory, and this machine has {bytes_text(room)}: dsv3 plan "
            "says of what, and what would take less"
        )


def gpu_bytes() -> int | None:
    """Memory of the smallest GPU of this machine; None: its driver does not say."""
    try:
        said = subprocess.run(
            _SMI, capture_output=True, text=True, timeout=_PATIENCE_S, check=True
        ).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    known = bool(said) and all(mib.isdecimal() for mib in said)
    return min(map(int, said)) * 2**20 if known else None


def _taken(recipe: Recipe, machine: Machine) -> float:
    """Bytes of all ranks, each at its fullest; 0 where there is no plan."""
    alike = recipe.parallel.processes / recipe.parallel.pipeline
    return alike * max(map(sum, _by_rank(recipe, machine, _ON_PROCESSORS)), default=0)


def _fullest(recipe: Recipe, machine: Machine) -> float:
    """Bytes of the fullest rank on GPUs, at its fullest; 0 where there is no plan."""
    return max(map(max, _by_rank(recipe, machine, _with_gpus(recipe))), default=0)


def _with_gpus(recipe: Recipe) -> str:
    """The cluster that a run on GPUs is planned for, or one in its place."""
    try:
        named = recipe.cluster or _ON_GPUS
        return named if load_cluster(named).host == "gpu" else _ON_GPUS
    except UserError:
        return _ON_GPUS


def _by_rank(recipe: Recipe, machine: Machine, cluster_name: str) -> list[list[float]]:
    """Bytes of each pipeline rank on a cluster, by schedule; nothing where there is no plan."""
    try:
        cluster = load_cluster(cluster_name)
        closed = resolve(recipe, machine, cluster, must_fit=False)
        steps = RecipeSteps(closed, Setting.of(closed, cluster, machine, 1.0), cluster)
        batches = largest_batches(phases_of(closed)).values()
        return [[rank.total for rank in rank_memories(steps, batch)] for batch in batches]
    except UserError:  # whoever plans it says so
        return []
