"""`transformer_engine_torch` 2.20.2 by shapes: the tensors that TE's C++ would make, and no values.

TE's Python decides what a layer computes, keeps and frees; its C++ allocates outputs and launches
kernels, past torch's dispatcher. Here each of its functions that a DeepSeek model reaches takes the
same arguments, makes tensors of the same shapes and types in the same order, and says what its
kernels read and write. What is not here says so when it is called.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from dsv3_plugin.rehearsal.te import enums
from dsv3_plugin.rehearsal.te.attention import Attention
from dsv3_plugin.rehearsal.te.experts import Experts
from dsv3_plugin.rehearsal.te.kernels import OnKernel, Subject
from dsv3_plugin.rehearsal.te.norms import Norms
from dsv3_plugin.rehearsal.te.optimizer import Optimizer
from dsv3_plugin.rehearsal.te.products import Products
from dsv3_plugin.rehearsal.te.quantized import Quantization


class Facts(Subject):
    """What TE asks about the machine's libraries."""

    def get_cublasLt_version(self) -> int:
        return _release("nvidia-cublas", otherwise="13.1.1")

    def get_cudnn_version(self) -> int:
        return _release("nvidia-cudnn-cu13", otherwise="9.24.0")

    def get_num_cublas_streams(self) -> int:
        return 4  # nvte_get_num_compute_streams: NVTE_COMPUTE_STREAMS' default

    def get_stream_priority_range(self, device_id: int = -1) -> tuple[int, int]:
        return 0, -5

    def device_supports_multicast(self, device_id: int = -1) -> bool:
        return True

    def ubuf_built_with_mpi(self) -> bool:
        return False


def _release(package: str, *, otherwise: str) -> int:
    """As the library itself numbers its releases: 9.24.0 is 92400."""
    try:
        text = version(package)
    except PackageNotFoundError:  # a CPU's torch brings none: what the pinned one brings
        text = otherwise
    major, minor, patch = map(int, text.split(".")[:3])
    return 10000 * major + 100 * minor + patch


SUBJECTS = (Facts, Quantization, Products, Norms, Attention, Experts, Optimizer)
_NO_FUNCTIONS = ("launch", "cast", "on_kernel")


def functions(on_kernel: OnKernel) -> dict[str, Callable[..., Any]]:
    """Every function that has shapes here, by its name in TE's library."""
    return {
        name: getattr(subject, name)
        for subject in (kind(on_kernel) for kind in SUBJECTS)
        for name in dir(subject)
        if not name.startswith("_") and name not in _NO_FUNCTIONS
    }


def as_module(name: str, on_kernel: OnKernel) -> ModuleType:
    """The library as a module."""
    module = ModuleType(name, __doc__)
    for one in enums.ALL:
        setattr(module, one.__name__, one)
    for known, function in functions(on_kernel).items():
        setattr(module, known, function)
    for kind in ("CommOverlapHelper", "CommOverlap", "CommOverlapP2P", "FP8TensorMeta"):
        setattr(module, kind, type(kind, (), {}))
    module.__getattr__ = _without_shapes
    return module


def _without_shapes(name: str) -> Callable[..., Any]:
    if name.startswith("__") or name in _PLUGINS:
        raise AttributeError(name)

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"a rehearsal does not know what {name} of Transformer Engine's library makes"
        )

    return refused


_PLUGINS = ("flash_attention", "get_attention_backend")
"""Where TE looks for somebody else's attention."""
