"""Making a child's process the rank's device: a GPU that only answers, or the CPU host."""

from dsv3_plugin.distributed.world import order_kernels
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rehearsal.gpu import gpu_of
from dsv3_plugin.rehearsal.te.importing import import_from
from dsv3_plugin.rehearsal.te.installed import te_python
from dsv3_plugin.rehearsal.te.kernels import Kernel, OnKernel
from dsv3_plugin.rehearsal.torch_cuda import pretend
from dsv3_plugin.upstream import cpu_host
from dsv3_plugin.upstream.replace import Replacer


class Launches:
    """Where kernels of Transformer Engine are told, before anybody listens and after."""

    def __init__(self) -> None:
        self.told: OnKernel = lambda kernel: None

    def __call__(self, kernel: Kernel) -> None:
        self.told(kernel)


def become(recipe: Recipe, machine: Machine, cluster: Cluster) -> Launches:
    """Make this process what a rank of the recipe runs on; before megatron is imported.

    Raises:
        UserError: the GPU's part cannot be played here.
    """
    launches = Launches()
    if not recipe.on_gpu(machine):
        cpu_host.enable()
        return launches
    parallel = recipe.parallel
    order_kernels(parallel.tensor, parallel.context, recipe.own_pipeline)  # as a rank does
    pretend(gpu_of(cluster), Replacer())
    python = te_python()
    if recipe.resolved_backend(machine) == "transformer_engine" and python is not None:
        import_from(python, launches)
    return launches
