"""Making a child's process the rank's device: a GPU that only answers, or the CPU host."""

from dataclasses import dataclass

from torch._subclasses.fake_tensor import FakeTensorMode

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rehearsal.compiled import compiled
from dsv3_plugin.rehearsal.gpu import gpu_of
from dsv3_plugin.rehearsal.python_device import be_python
from dsv3_plugin.rehearsal.shim.build import preloaded
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


@dataclass(frozen=True)
class Device:
    """What this process runs a rank on.

    Attributes:
        fake_mode: makes the mode in which its tensors have shapes alone.
        launches: where kernels of Transformer Engine are told.
    """

    fake_mode: type[FakeTensorMode]
    launches: Launches


def become(
    recipe: Recipe, machine: Machine, cluster: Cluster, *, only_configuration: bool
) -> Device:
    """Make this process what a rank of the recipe runs on; before megatron is imported.

    Args:
        recipe: the run.
        machine: what it is resolved for.
        cluster: whose device it is.
        only_configuration: nothing is built, so Transformer Engine's names are enough.

    Raises:
        UserError: the GPU's part cannot be played here.
    """
    if not recipe.on_gpu(machine):
        cpu_host.enable()
        return Device(FakeTensorMode, Launches())
    replacer = Replacer()
    pretend(gpu_of(cluster), replacer)
    fake_mode = FakeTensorMode if preloaded() else be_python(replacer)
    replacer.set("torch:compile", compiled)
    launches = Launches()
    if recipe.resolved_backend(machine) == "transformer_engine":
        _import_transformer_engine(launches, only_configuration)
    return Device(fake_mode, launches)


def _import_transformer_engine(launches: Launches, only_configuration: bool) -> None:
    python = te_python()
    if python is not None:
        import_from(python, launches)
    elif only_configuration:
        import_signatures()
    else:
        raise UserError(how_to_get_it())
