"""Megatron-Core on a machine without a GPU: CPU tensors, gloo, the same trainer.

Upstream asks for CUDA in three ways: through the functions of `torch.cuda`, through
`device="cuda"` arguments, and by choosing Transformer Engine or Apex kernels wherever those are
installed. `enable()` answers all three for the CPU; `disable()` puts everything back. It has to
run before `megatron` is imported, because upstream decides at import which kernels it has.

`torch.cuda.is_available()` stays False throughout: code that asks is told the truth.
"""

import contextlib
import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from torch.utils._device import _device_constructors

from dsv3_plugin.upstream.replace import Replacer

CPU = torch.device("cpu")

_replacer = Replacer()
# What else `enable()` changed in the process, and `disable()` takes back.
_undo = contextlib.ExitStack()

# Packages whose kernels need a GPU. Upstream prefers them to torch even for CPU tensors, so on
# this host they are not there: `None` in sys.modules makes an import fail as if not installed.
_HIDDEN = ("transformer_engine", "transformer_engine_torch", "apex")

# The factory functions that upstream (or torch.distributed) calls with `device="cuda"`. Wrapping
# these few costs nothing elsewhere; a TorchFunctionMode would slow down every torch call.
_FACTORIES = (
    "arange", "as_tensor", "asarray", "empty", "empty_like", "empty_strided", "eye", "full",
    "full_like", "linspace", "logspace", "ones", "ones_like", "rand", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "randperm", "scalar_tensor", "tensor", "tril_indices",
    "triu_indices", "zeros", "zeros_like", "Tensor.new_empty", "Tensor.new_full",
    "Tensor.new_ones", "Tensor.new_tensor", "Tensor.new_zeros",
)  # fmt: skip


class Stream:
    """The one queue a CPU has: work is done when it is issued."""

    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: "Stream") -> None:
        pass

    def wait_event(self, event: "Event") -> None:
        pass

    def record_event(self, event: "Event | None" = None) -> "Event":
        return event or Event()

    def synchronize(self) -> None:
        pass

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class Event:
    """An event that has always happened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, *args: Any) -> None:
        pass

    def wait(self, *args: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


def _answer(value: Any = None) -> Callable[..., Any]:
    """A function that answers `value` to any arguments.

    Each call makes a new function: torch._dynamo refuses to see one object under two names.
    """
    return lambda *args, **kwargs: value


def _call(function: Callable[[], Any]) -> Callable[..., Any]:
    """A function that answers `function()` to any arguments; new at each call, as above."""
    return lambda *args, **kwargs: function()


def _resident_bytes() -> int:
    return psutil.Process().memory_info().rss


def _memory_stats() -> dict[str, int]:
    resident = _resident_bytes()
    return {
        "reserved_bytes.all.current": resident,
        "allocated_bytes.all.current": resident,
        "allocated_bytes.all.peak": resident,
        "allocation.all.current": 0,
    }


def _memory_info() -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _device_properties() -> SimpleNamespace:
    return SimpleNamespace(
        name="cpu",
        major=0,
        minor=0,
        total_memory=psutil.virtual_memory().total,
        multi_processor_count=os.cpu_count(),
    )


_CUDA_FUNCTIONS: dict[str, Any] = {
    # A number, as upstream and its users write it into names of devices: the one there is.
    "current_device": _answer(0),
    "device": _call(contextlib.nullcontext),
    "device_count": _answer(1),
    "set_device": _answer(),
    "synchronize": _answer(),
    "Stream": Stream,
    "Event": Event,
    "current_stream": _call(Stream),
    "default_stream": _call(Stream),
    "set_stream": _answer(),
    "stream": _call(contextlib.nullcontext),
    "get_rng_state": _call(torch.get_rng_state),
    "set_rng_state": lambda state, *args: torch.set_rng_state(state),
    # Not torch.manual_seed, which calls back here. Upstream's tracker of RNG states seeds, keeps
    # the state and restores: were this nothing, expert-parallel ranks would draw equal experts.
    "manual_seed": lambda seed: torch.default_generator.manual_seed(int(seed)),
    "manual_seed_all": _answer(),
    "empty_cache": _answer(),
    "memory_allocated": _call(_resident_bytes),
    "max_memory_allocated": _call(_resident_bytes),
    "memory_reserved": _call(_resident_bytes),
    "max_memory_reserved": _call(_resident_bytes),
    "reset_peak_memory_stats": _answer(),
    "memory_stats": _call(_memory_stats),
    "mem_get_info": _call(_memory_info),
    "get_device_capability": _answer((0, 0)),
    "get_device_properties": _call(_device_properties),
    "get_device_name": _answer("cpu"),
    "is_current_stream_capturing": _answer(False),
}


def _is_cuda(device: Any) -> bool:
    """Whether a GPU is meant: by name, as torch's object, or by its number alone."""
    if isinstance(device, str):
        return device.startswith("cuda")
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, int) and not isinstance(device, bool)


def _on_cpu(factory: Any, argument: str = "device") -> Any:
    @functools.wraps(factory)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _is_cuda(kwargs.get(argument)):
            kwargs[argument] = CPU
        if kwargs.get("pin_memory"):  # for copies to a GPU
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return wrapped


def _generator(original: type[torch.Generator]) -> type:
    """torch's generator of random numbers, whose one positional argument is its device."""

    class AnyGenerator(type):
        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, original)

    class Generator(metaclass=AnyGenerator):
        def __new__(cls, device: Any = CPU) -> torch.Generator:
            return original(CPU if _is_cuda(device) else device)

    # A generator is pickled as what this name makes of its device and state.
    Generator.__module__, Generator.__qualname__ = original.__module__, original.__qualname__
    return Generator


def _tensor_to(original: Any) -> Any:
    @functools.wraps(original)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _is_cuda(args[0]):
            args = (CPU, *args[1:])
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        return original(self, *args, **kwargs)

    return to


def _tensor_type(original: Any) -> Any:
    """Gradient clipping compares `Tensor.type()` with 'torch.cuda.FloatTensor'."""

    @functools.wraps(original)
    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        if isinstance(answer, str):
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    return type_name


def _uncompiled(function: Any = None, **options: Any) -> Any:
    """Stands for `torch.compile`, as a decorator with or without arguments."""
    return function if function is not None else lambda f: f


def _without_pinning(original: Any) -> Any:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "pin_memory": False})

    return init


def initialize_megatron(original: Any) -> Any:
    """Wraps upstream's `initialize_megatron`, whose flag `pretrain()` cannot pass on."""

    signature = inspect.signature(original)

    @functools.wraps(original)
    def without_cuda(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.arguments["allow_no_cuda"] = True
        return original(*given.args, **given.kwargs)

    return without_cuda


_TRACKER = "megatron.core.tensor_parallel.random"


def _about_one_generator(record: logging.LogRecord) -> bool:
    """Drops the tracker's warning that CPU numbers were drawn in a GPU context: here they are."""
    return "CPU RNG state changed" not in record.getMessage()


def enable() -> None:
    """Turn this process into a CPU host. Twice is harmless.

    Raises:
        RuntimeError: megatron was imported before, with Transformer Engine visible.
    """
    if _replacer.active:
        return
    already = sys.modules.get("megatron.core.extensions.transformer_engine")
    if already is not None and already.HAVE_TE:
        raise RuntimeError("cpu_host.enable() must run before megatron is imported")

    # It looks for CUDA at import and says it found none.
    cpp_extension = logging.getLogger("torch.utils.cpp_extension")
    _undo.callback(cpp_extension.setLevel, cpp_extension.level)
    cpp_extension.setLevel(logging.ERROR)
    for package in _HIDDEN:
        if package not in sys.modules:
            sys.modules[package] = None  # type: ignore[assignment]
            _undo.callback(sys.modules.pop, package, None)
    # upstream's jit_fuser is torch.compile, at import; it needs a C++ toolchain and minutes of
    # warm-up for functions this small.
    _replacer.set("torch:compile", _uncompiled)

    for name, function in _CUDA_FUNCTIONS.items():
        _replacer.set(f"torch.cuda:{name}", function)
    # `with torch.device(...)` knows the factories by identity, from a list it makes on first use:
    # made before they are wrapped, it goes on working (transformers loads models inside one).
    _device_constructors()
    for name in _FACTORIES:
        _replacer.wrap(f"torch:{name}", _on_cpu)
    _replacer.wrap("torch:load", functools.partial(_on_cpu, argument="map_location"))
    _replacer.wrap("torch:Generator", _generator)
    _replacer.set("torch._C:Generator", torch.Generator)
    _replacer.set("torch:Tensor.cuda", lambda self, *a, **k: self)
    _replacer.set("torch.nn:Module.cuda", lambda self, *a, **k: self)
    _replacer.wrap("torch:Tensor.to", _tensor_to)
    _replacer.wrap("torch:Tensor.type", _tensor_type)
    _replacer.wrap("torch.utils.data:DataLoader.__init__", _without_pinning)
    # Upstream's tracker of RNG states reaches below torch.cuda: it asks torch.cuda.random for a
    # state, and sets one by a callback that torch would keep for a GPU that never comes.
    _replacer.set("torch.cuda.random:get_rng_state", _call(torch.get_rng_state))
    # The tracker's module has a copy of that function, where it was imported before.
    for module in ("torch.cuda", _TRACKER):
        if module in sys.modules:
            _replacer.set(f"{module}:_lazy_call", lambda callback, **options: callback())
    _replacer.set("torch.cuda:default_generators", (torch.default_generator,))
    tracker = logging.getLogger(_TRACKER)
    tracker.addFilter(_about_one_generator)
    _undo.callback(tracker.removeFilter, _about_one_generator)
    # The optimizer of torch asks CUDA whether a graph is being captured at every step.
    _replacer.set("torch.optim:Optimizer._cuda_graph_capture_health_check", _answer())


def disable() -> None:
    """Undo `enable()`. Modules of megatron already imported keep the kernels they chose."""
    _replacer.restore()
    _undo.close()


def is_enabled() -> bool:
    """Whether this process is a CPU host now."""
    return _replacer.active
