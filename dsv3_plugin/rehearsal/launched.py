"""What a step launches: kernels with the bytes they move, and collectives in their order."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from dsv3_plugin.rehearsal.report import OF_TWO, Operations
from dsv3_plugin.rehearsal.te.kernels import Kernel
from dsv3_plugin.rehearsal.world import World

_NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh",
    "detach", "alias", "resize_", "set_", "_local_scalar_dense", "record_stream",
}  # fmt: skip
"""Operations that launch nothing, views besides: these are told by their schema."""


class Kernels:
    """Counts operations on the device (a `Watcher`), and kernels of Transformer Engine."""

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type
        self._by_name: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def issued(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = function.overloadpacket.__name__
        if function.namespace in ("c10d", "prim") or name in _NO_KERNEL or _is_view(function):
            return
        read = list(_tensors((args, kwargs)))
        written = list(_tensors(result))
        if any(tensor.device.type == self._device_type for tensor in written):
            self._add(name, read, written)

    def fused(self, name: str, read: Any, result: Any) -> None:
        self._add(name, list(_tensors(read)), list(_tensors(result)))

    def launched(self, kernel: Kernel) -> None:
        """A kernel of Transformer Engine's library."""
        self._add(kernel.name, kernel.reads, kernel.writes)

    def counted(self) -> Operations:
        """All since it began."""
        by_name = {name: (number, moved) for name, (number, moved) in self._by_name.items()}
        return Operations(
            kernels=sum(number for number, _ in by_name.values()),
            bytes=sum(moved for _, moved in by_name.values()),
            by_name=dict(sorted(by_name.items(), key=lambda item: -item[1][1])),
        )

    def restart(self) -> None:
        """Count from here on."""
        self._by_name.clear()

    def _add(self, name: str, read: Any, written: Any) -> None:
        entry = self._by_name[name]
        entry[0] += 1
        entry[1] += sum(tensor.numel() * tensor.element_size() for tensor in (*read, *written))


class Collectives:
    """Has collectives and messages written down in their order (a `Watcher`).

    Args:
        world: where.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def issued(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        if function.namespace != "c10d":
            return
        group = next((value for value in args if _is_group(value)), None)
        if group is None:
            return
        tensors = list(_tensors(args))
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        name = function.overloadpacket.__name__
        waits = not _argument("async_op", function, args, kwargs)
        form = _form(*tensors) if name.rstrip("_") in OF_TWO else ""
        self._world.issue(dist.ProcessGroup.unbox(group), name, size, waits=waits, said=form)

    def fused(self, name: str, read: Any, result: Any) -> None:
        pass  # nobody compiles messages


def _form(tensor: torch.Tensor) -> str:
    """Of a message with hidden states, `[s, b, h]`; a greeting has none."""
    if tensor.dim() != 3:
        return ""
    return f"{list(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')}"


def _argument(name: str, function: Any, args: Any, kwargs: Any) -> Any:
    """What an operation was given for an argument; None where it has none of the name."""
    for place, argument in enumerate(function._schema.arguments):
        if argument.name == name:
            given = args[place] if place < len(args) else argument.default_value
            return kwargs.get(name, given)
    return None


def _is_group(value: Any) -> bool:
    return isinstance(value, torch.ScriptObject) and str(value._type()).endswith(".ProcessGroup")


def _is_view(function: Any) -> bool:
    """Whether an operation only looks at its input otherwise."""
    returns = function._schema.returns
    return any(
        returned.alias_info is not None and not returned.alias_info.is_write for returned in returns
    )


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    yield from (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))
