"""Transformer Engine by name alone: enough for upstream to be configured for it.

Where TE's Python is not to be had, upstream's parsing, validation and configuration still ask that
it can be imported, which release it is, and what its optimizer can be given. Its classes are names
here, good for subclassing; whoever makes or calls one is told so.
"""

import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, DistributionFinder
from types import ModuleType
from typing import Any

import torch

from dsv3_plugin.rehearsal.te.installed import VERSION, how_to_get_it

_PACKAGES = ("transformer_engine", "transformer_engine_torch")


def import_signatures() -> None:
    """Make `import transformer_engine` give names, for the rest of this process."""
    sys.meta_path.insert(0, _Finder())


class FusedAdam(torch.optim.Optimizer):
    """What `transformer_engine.pytorch.optimizers.FusedAdam` can be given (2.20.2)."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        capturable: bool = False,
        master_weights: bool = False,
        master_weight_dtype: torch.dtype = torch.float32,
        exp_avg_dtype: torch.dtype = torch.float32,
        exp_avg_sq_dtype: torch.dtype = torch.float32,
        use_decoupled_grad: bool = False,
        store_param_remainders: bool = False,
        set_grad_none: bool | None = None,
    ) -> None:
        raise _absent("FusedAdam")


@functools.cache
def get_cublas_workspace(device: int, ub: bool, grouped_gemm: bool) -> Any:
    """As `transformer_engine.pytorch.cpp_extensions.gemm` has it, which the plugin replaces."""
    raise _absent("get_cublas_workspace")


_KNOWN = {"FusedAdam": FusedAdam, "get_cublas_workspace": get_cublas_workspace}


class _Names(ModuleType):
    """A module that has whatever name is asked for: a class, or a module in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _KNOWN:
            value: Any = _KNOWN[name]
        elif name[0].isupper():
            value = _Named(name, (torch.nn.Module,), {"__init__": _refuse})
        else:
            value = _Names(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise _absent(self.__name__)


class _Named(type):
    """A class whose attributes (an enumeration's members) are their names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Finder(DistributionFinder, importlib.abc.Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in _PACKAGES:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = _Names(spec.name)
        module.__version__ = VERSION
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass

    def find_distributions(
        self, context: DistributionFinder.Context = DistributionFinder.Context()
    ) -> Iterable[Distribution]:
        name = (context.name or "").replace("-", "_").lower()
        return [_Metadata()] if name in _PACKAGES else []


class _Metadata(Distribution):
    def read_text(self, filename: str) -> str | None:
        if filename != "METADATA":
            return None
        return f"Metadata-Version: 2.4\nName: transformer_engine\nVersion: {VERSION}\n"

    def locate_file(self, path: Any) -> Any:
        return path


def _refuse(self: Any, *args: Any, **kwargs: Any) -> None:
    raise _absent(type(self).__name__)


def _absent(name: str) -> RuntimeError:
    return RuntimeError(f"{name} is a name alone here. {how_to_get_it()}")
