"""Values of a few fake tensors: counts that the host asks for in the middle of a step.

A fake tensor has a shape and no values, and a dispatcher has to know how many rows go to whom. The
routing map is given (`routing.py`); what is computed of it, integer for integer, is computed once
somebody asks, and only then.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

_UNWRITTEN = {
    torch.ops.aten.new_empty,
    torch.ops.aten.new_empty_strided,
    torch.ops.aten.empty_like,
    torch.ops.aten.empty,
}
"""What they make has no value yet."""

_GATHERS: dict[Any, Callable[[Any], tuple[torch.Tensor, torch.Tensor]]] = {
    torch.ops.c10d._allgather_base_.default: lambda args: args[:2],
}
"""Operation → of its arguments, where what comes goes, and what is sent."""

Thunk = Callable[[], torch.Tensor]


class KnownValues:
    """Remembers how fake tensors could be computed, where they follow from what was given."""

    def __init__(self) -> None:
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def give(self, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Say what a fake tensor's value is; returns the tensor."""
        self._known[tensor] = lambda: value
        return tensor

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """A tensor's value, on the CPU; None where it is not known."""
        if not isinstance(tensor, FakeTensor):
            return tensor
        thunk = self._known.get(tensor)
        if thunk is None:
            return tensor.constant
        with _disable_current_modes():
            return thunk()

    def follow(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Take note of an operation: its result is known where all that it read is."""
        if function in _GATHERS:
            self._gathered(*_GATHERS[function](args))
            return
        if function._schema.is_mutable:
            self._forget(function, args)
            return
        if function.overloadpacket in _UNWRITTEN:
            return
        made = [result] if isinstance(result, torch.Tensor) else result
        if not isinstance(made, list | tuple) or not made or _is_float(made[0]):
            return  # before anything is looked at: nearly all operations are such
        leaves, spec = pytree.tree_flatten((args, kwargs))
        read = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if not read or not all(self._has(tensor) for tensor in read):
            return
        thunks = [self._thunk(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]

        @_once
        def computed() -> list[Any]:
            values = [_on_cpu(t() if callable(t) else t) for t in thunks]
            real_args, real_kwargs = pytree.tree_unflatten(values, spec)
            return pytree.tree_leaves(function(*real_args, **real_kwargs))

        for index, leaf in enumerate(pytree.tree_leaves(result)):
            if isinstance(leaf, FakeTensor) and not _is_float(leaf):
                self._known[leaf] = lambda index=index: computed()[index]

    def _gathered(self, everyone: torch.Tensor, mine: torch.Tensor) -> None:
        """Every rank has what this one has."""
        self._known.pop(everyone, None)
        if self._has(mine):
            thunk, shape = self._thunk(mine), everyone.shape
            self._known[everyone] = lambda: (
                thunk().flatten().repeat(shape.numel() // max(1, mine.numel())).view(shape)
            )

    def _has(self, tensor: torch.Tensor) -> bool:
        if not isinstance(tensor, FakeTensor):
            return True
        return tensor in self._known or tensor.constant is not None

    def _thunk(self, tensor: torch.Tensor) -> Thunk:
        if not isinstance(tensor, FakeTensor):
            return lambda: tensor
        known = self._known.get(tensor)
        constant = tensor.constant
        return known if known is not None else lambda: constant

    def _forget(self, function: Any, args: Any) -> None:
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for leaf in pytree.tree_leaves(value):
                    if isinstance(leaf, torch.Tensor):
                        self._known.pop(leaf, None)


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point


def _once(compute: Callable[[], list[Any]]) -> Callable[[], list[Any]]:
    kept: list[list[Any]] = []

    def value() -> list[Any]:
        if not kept:
            kept.append(compute())
        return kept[0]

    return value


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) else value
