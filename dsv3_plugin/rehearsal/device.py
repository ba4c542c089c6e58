"""Making a child's process the rank's device: a GPU that only answers, or the CPU host."""

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rehearsal.compiled import compiled
from dsv3_plugin.rehearsal.gpu import gpu_of
from dsv3_plugin.rehearsal.te.importing import import_from
from dsv3_plugin.rehearsal.te.installed import how_to_get_it, te_python
from dsv3_plugin.rehearsal.te.kernels import Kernel, OnKernel
from dsv3_plugin.rehearsal.te.signatures import import_signatures
from dsv3_plugin.rehearsal.torch_cuda import pretend
from dsv3_plugin.upstream import cpu_host
from dsv3_plugin.upstream.replace import Replacer


class Launches:
    """Where kernels of Transformer Engine are told, before anybody listens and after."""

    def __init__(self) -> None:
        self.told: OnKernel = lambda kernel: None

    def __call__(self, kernel: Kernel) -> None:
        self.told(kernel)


def become(
    recipe: Recipe, machine: Machine, cluster: Cluster, *, only_configuration: bool
) -> Launches:
    """Make this process what a rank of the recipe runs on; before megatron is imported.

    Args:
        recipe: the run.
        machine: what it is resolved for.
        cluster: whose device it is.
        only_configuration: nothing is built, so Transformer Engine's names are enough.

    Raises:
        UserError: the GPU's part cannot be played here.
    """
    launches = Launches()
    if not recipe.on_gpu(machine):
        cpu_host.enable()
        return launches
    replacer = Replacer()
    pretend(gpu_of(cluster), replacer)
    replacer.set("torch:compile", compiled)
    if recipe.resolved_backend(machine) != "transformer_engine":
        return launches
    python = te_python()
    if python is not None:
        import_from(python, launches)
    elif only_configuration:
        import_signatures()
    else:
        raise UserError(how_to_get_it())
    return launches
