"""Imports Transformer Engine's Python over `library.py`, in a process made for a rehearsal.

TE's package looks for its compiled libraries when it is imported, and reads the version that pip
installed. A finder that stands before the others gives it the Python of `installed.py`, its
metadata, and `library.py` where it would load `transformer_engine_torch`.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import Distribution, DistributionFinder, MetadataPathFinder
from types import ModuleType
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dsv3_plugin.rehearsal.te import library
from dsv3_plugin.rehearsal.te.installed import TEPython
from dsv3_plugin.rehearsal.te.kernels import OnKernel
from dsv3_plugin.rehearsal.te.triton_launches import leave_out_launches

_PACKAGE = "transformer_engine"
_LIBRARY = "transformer_engine_torch"
_EXPORT = "transformer_engine.pytorch.onnx_extensions"


def import_from(python: TEPython, on_kernel: OnKernel = lambda kernel: None) -> None:
    """Make `import transformer_engine` give TE's Python over shapes, for the rest of this process.

    Args:
        python: where it is.
        on_kernel: told of every kernel that TE launches.

    Raises:
        RuntimeError: it has been imported already, over something else.
    """
    if _PACKAGE in sys.modules:
        raise RuntimeError("transformer_engine was imported before the rehearsal began")
    # TE's own switch for importing without libraries (its build reads its version so).
    os.environ["NVTE_PROJECT_BUILDING"] = "1"
    os.environ.pop("NVTE_RELEASE_BUILD", None)
    sys.meta_path.insert(0, _Finder(python, on_kernel))
    leave_out_launches(on_kernel)


class _Finder(DistributionFinder):
    def __init__(self, python: TEPython, on_kernel: OnKernel) -> None:
        self._path = [str(python.folder)]
        self._on_kernel = on_kernel

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == _LIBRARY:
            return importlib.machinery.ModuleSpec(name, _Library(self._on_kernel))
        if name.partition(".")[0] != _PACKAGE:
            return None
        if name == _EXPORT:
            return importlib.machinery.ModuleSpec(name, _NoExport())
        spec = importlib.machinery.PathFinder.find_spec(
            name, self._path if path is None else path, target
        )
        after = _AROUND.get(name)
        if spec is not None and after is not None:
            spec.loader = _Around(spec.loader, after)
        return spec

    def find_distributions(
        self, context: DistributionFinder.Context = DistributionFinder.Context()
    ) -> Iterable[Distribution]:
        if (context.name or "").replace("-", "_").lower() != _PACKAGE:
            return []
        return MetadataPathFinder.find_distributions(
            DistributionFinder.Context(name=_PACKAGE, path=self._path)
        )


class _Library(importlib.abc.Loader):
    """Loads `library.py` under the compiled library's name."""

    def __init__(self, on_kernel: OnKernel) -> None:
        self._on_kernel = on_kernel

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return library.as_module(spec.name, self._on_kernel)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _NoExport(importlib.abc.Loader):
    """Stands for operators of ONNX, whose packages a rehearsal would need for nothing else."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: None
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Around(importlib.abc.Loader):
    """A module's own loader, and what has to happen around its execution."""

    def __init__(self, loader: importlib.abc.Loader, around: Callable[[ModuleType], Iterator]):
        self._loader = loader
        self._around = around

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        steps = self._around(module)
        next(steps)
        self._loader.exec_module(module)
        next(steps, None)


def _around_common(module: ModuleType) -> Iterator[None]:
    """`transformer_engine.common` loads the compiled library from a file."""
    yield
    module.load_framework_extension = lambda framework: importlib.import_module(
        f"{_PACKAGE}_{framework}"
    )


def _around_inference(module: ModuleType) -> Iterator[None]:
    """Key-value caches, which training has none of, take `rearrange` from einops by name."""
    absent = (
        "einops" not in sys.modules and importlib.machinery.PathFinder.find_spec("einops") is None
    )
    if absent:
        sys.modules["einops"] = ModuleType("einops")
        sys.modules["einops"].rearrange = None
    yield
    if absent:
        del sys.modules["einops"]


def _around_attention(module: ModuleType) -> Iterator[None]:
    """cuDNN is offered tensors of torch's own class, and a fake one is of a subclass."""
    yield
    choose = module.get_attention_backend

    def choose_for_plain(attention_params: Any) -> Any:
        if issubclass(attention_params.qkv_type, FakeTensor):
            attention_params = replace(attention_params, qkv_type=Tensor)
        return choose(attention_params)

    module.get_attention_backend = choose_for_plain


_AROUND: dict[str, Callable[[ModuleType], Iterator[None]]] = {
    "transformer_engine.common": _around_common,
    "transformer_engine.pytorch.attention.inference": _around_inference,
    "transformer_engine.pytorch.attention.dot_product_attention.utils": _around_attention,
}
