"""GPUs that a run leaves idle, or takes though it is planned without. No torch here."""

from collections.abc import Iterator

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.numbers import number_of
from dsv3_plugin.planner.cluster import Cluster, load_cluster
from dsv3_plugin.recipe.schema import Recipe

_IDLE = "host: cpu computes on processors alone"


def on_machine(recipe: Recipe, machine: Machine) -> Iterator[str]:
    """A sentence where a run on a machine has nothing of its GPUs, or is planned without them."""
    if not machine.gpus:
        return
    gpus = number_of(machine.gpus, "GPU")
    if recipe.host == "cpu":
        idle, them = ("stays idle", "it") if machine.gpus == 1 else ("stay idle", "them")
        yield f"{_IDLE}, and this machine has {gpus}, which {idle}: host=auto computes on {them}"
    elif recipe.on_gpu(machine) and (name := _planned_without(recipe)) is not None:
        yield (
            f"it computes on GPUs, of which this machine has {gpus}, and is planned for {name}, "
            f"whose file says host: cpu: host=cpu leaves them alone, cluster=h100 plans with such"
        )


def on_cluster(recipe: Recipe, cluster: Cluster) -> Iterator[str]:
    """A sentence where a job on a cluster would have nothing of its GPUs."""
    if recipe.host == "cpu" and cluster.host == "gpu":
        yield (
            f"{_IDLE}, and nodes of {cluster.name} have "
            f"{number_of(cluster.gpus_per_node, 'GPU')} each, which the job does not ask for: "
            f"host=auto computes on them"
        )


def _planned_without(recipe: Recipe) -> str | None:
    """The cluster that a recipe names, where it has no GPUs."""
    if recipe.cluster is None:
        return None
    try:
        cluster = load_cluster(recipe.cluster)
    except UserError:  # whoever plans for it says so
        return None
    return cluster.name if cluster.host == "cpu" else None
