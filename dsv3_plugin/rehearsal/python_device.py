"""Tensors of a GPU where no CUDA runtime can be preloaded: torch's C++ takes them for Python's.

Under FakeTensorMode Python sees a tensor on "cuda", and so does torch's C++, which looks there for
streams as soon as something has a gradient: without a driver that is an error. torch also lets
Python be a device (PrivateUse1), whose streams are whatever Python says. Here C++ is told that
tensors on "cuda" are on that device, and what it makes like them is on "cuda" again: operations,
shapes, storages and what Python sees are as with the preloaded runtime (`shim`).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from dsv3_plugin.upstream.cpu_host import Event, Stream
from dsv3_plugin.upstream.replace import Replacer

_NAME = "rehearsed"
_ASKED = torch.ops.prim.device.default
"""How C++ asks for the device of a tensor that is a subclass of Python's; Python reads it off."""


def be_python(replacer: Replacer) -> type[FakeTensorMode]:
    """Let tensors on "cuda" be Python's in this process.

    torch knows one such device, for as long as a process lives.

    Returns:
        What takes the place of FakeTensorMode.
    """
    _setup_privateuseone_for_python_backend(_NAME)
    for name, answer in _queues().items():
        replacer.set(f"torch.cuda:{name}", answer)
    # What is no fake tensor itself, and wraps some: a quantised one of Transformer Engine.
    replacer.set("torch:Tensor.device", property(_seen_by_python(torch.Tensor.device.__get__)))
    replacer.set("torch:Tensor.is_cuda", property(lambda tensor: tensor.device.type == "cuda"))
    for name in ("to", "_make_wrapper_subclass"):
        replacer.wrap(f"torch:Tensor.{name}", _given_as_in_c)
    replacer.set("torch:Tensor.cuda", lambda tensor, *args, **kwargs: tensor.to("cuda"))
    replacer.wrap("torch:Tensor.type", _named_as_cudas)
    return PythonDevice


class PythonDevice(FakeTensorMode):
    """A fake mode whose tensors on "cuda" are Python's to torch's C++."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _ASKED:
            return _in_c(super().dispatch(func, types, args, kwargs))
        if kwargs and _is_pythons(kwargs.get("device")):
            kwargs = kwargs | {"device": torch.device("cuda:0")}
        return super().dispatch(func, types, args, kwargs)


def _queues() -> dict[str, Any]:
    """Name in torch.cuda → what it is where there is one queue, and work in it is done at once."""
    one = {"device": Stream, "stream": Stream, "current_stream": Stream, "default_stream": Stream}
    return {
        "Stream": Stream,
        "Event": Event,
        "set_stream": lambda stream: None,
        **{name: functools.partial(kind) for name, kind in one.items()},
    }


def _in_c(device: Any) -> Any:
    """A device as torch's C++ is told."""
    if isinstance(device, str) and device.startswith("cuda"):
        return torch.device(f"{_NAME}:0")
    if isinstance(device, torch.device) and device.type == "cuda":
        return torch.device(f"{_NAME}:0")
    return device


def _is_pythons(device: Any) -> bool:
    return isinstance(device, torch.device) and device.type == _NAME


def _seen_by_python(device_in_c: Callable[[torch.Tensor], torch.device]) -> Callable[..., Any]:
    def device(tensor: torch.Tensor) -> torch.device:
        found = device_in_c(tensor)
        return torch.device("cuda:0") if _is_pythons(found) else found

    return device


def _given_as_in_c(original: Callable[..., Any]) -> Callable[..., Any]:
    """Where C++ compares a device it is given with one that it was told, or keeps it."""

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = _in_c(kwargs["device"])
        return original(*map(_in_c, args), **kwargs)

    return function


def _named_as_cudas(original: Callable[..., Any]) -> Callable[..., Any]:
    """Upstream compares `Tensor.type()` with 'torch.cuda.BFloat16Tensor'."""

    @functools.wraps(original)
    def type_or_cast(*args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        return answer.replace(f".{_NAME}.", ".cuda.") if isinstance(answer, str) else answer

    return type_or_cast
