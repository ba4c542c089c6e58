"""Following a step: every operation passes here, and whoever watches is told.

Under FakeTensorMode nothing is computed, so the host may not ask for a value: it gets the known one
or a nought, and that it asked is counted, since on a GPU it would have waited. So it would for a
copy to the host, and where it says that it waits (`count_waits`).
"""

import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from dsv3_plugin.rehearsal.known import KnownValues
from dsv3_plugin.upstream.replace import Replacer

_SELECTS = torch.ops.aten.masked_select.default
_TAKES = torch.ops.aten.index.Tensor
_COUNTED = {_SELECTS, torch.ops.aten.nonzero.default}
"""Operations whose result has a size that depends on values."""
_FOLLOWED = {torch.ops.aten.unique_consecutive.default, torch.ops.aten.bincount.default}
"""Those whose results are as large as they are with the known values."""
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_ASKS = torch.ops.aten._local_scalar_dense.default
_OUTLIVES = torch.ops.aten.record_stream.default
"""Told to the caching allocator, which knows no fake tensor: upstream's all-to-all dispatcher does
when it copies counts on a stream beside."""


def _grouped_product(
    a: torch.Tensor, b: torch.Tensor, offsets: torch.Tensor | None = None, *rest: Any
) -> torch.Tensor:
    """`[R, k]` and `[E, k, n]` → `[R, n]`, or `[m, R]` and `[R, n]` → `[E, m, n]`.

    torch computes it in FP32 on a CPU, and knows its shape in BF16 alone.
    """
    if a.dim() == 2 and b.dim() == 2:
        return a.new_empty(len(offsets), a.shape[0], b.shape[1])
    return a.new_empty(*a.shape[:-1], b.shape[-1])


def _coalesced(function: Any) -> Callable[..., Any]:
    """Several collectives in one, of which torch knows no fake form: they return a handle alone."""

    def handle(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            bare = pytree.tree_map_only(torch.Tensor, lambda _: torch.empty(0), (args, kwargs))
            return function(*bare[0], **bare[1])

    return handle


_SHAPES = {
    torch.ops.aten._grouped_mm.default: _grouped_product,
    **{
        function: _coalesced(function)
        for function in (
            torch.ops.c10d.allreduce_coalesced_.default,
            torch.ops.c10d.allgather_into_tensor_coalesced_.default,
            torch.ops.c10d.reduce_scatter_tensor_coalesced_.default,
        )
    },
}
"""Operation → what knows the shape of its result where torch does not."""


class Watcher(Protocol):
    """What is told of each operation after it was issued."""

    def issued(self, function: Any, args: Any, kwargs: Any, result: Any) -> None: ...

    def fused(self, name: str, read: Any, result: Any) -> None:
        """Of several operations that are one kernel, when all were issued."""


class Observer(TorchDispatchMode):
    """Passes every operation of the threads that enter it on to watchers.

    Attributes:
        known: values that are known all the same.
        waits: how often the host waited for the device, by where it did.
        drained: those where it waited for all that it had queued, and for no event of it.
    """

    def __init__(self, known: KnownValues, watchers: Sequence[Watcher]) -> None:
        super().__init__()
        self.known = known
        self._watchers = watchers
        self.waits: Counter[str] = Counter()
        self.drained: Counter[str] = Counter()
        self._here = threading.local()  # the two sides of a pair are in the middle of their own

    def restart(self) -> None:
        """Count the host's waits from here on."""
        self.waits.clear()
        self.drained.clear()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.namespace == "prim":  # of a tensor's own properties; half of all calls
            return function(*args, **kwargs)
        if function is _ASKS:
            return self.answer(args[0])
        if function is _OUTLIVES:
            return None
        if function in _COUNTED:
            result = self._counted(function, *args)
        elif function in _FOLLOWED:
            result = self._followed(function, args, kwargs)
        elif function is _TAKES:
            result = function(args[0], self._places(args[1]))
        else:
            result = _SHAPES.get(function, function)(*args, **kwargs)
        if function in _COPIES and _reaches_host(function, args, kwargs, result):
            self.waited()
        self.known.follow(function, args, kwargs, result)
        if not getattr(self._here, "fusing", False):
            for watcher in self._watchers:
                watcher.issued(function, args, kwargs, result)
        return result

    def as_one(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Call a function whose operations are one kernel to the watchers."""
        if getattr(self._here, "fusing", False):
            return function(*args, **kwargs)  # a part of what is fused already
        self._here.fusing = True
        try:
            result = function(*args, **kwargs)
        finally:
            self._here.fusing = False
        for watcher in self._watchers:
            watcher.fused(function.__name__, (args, kwargs), result)
        return result

    def _counted(self, function: Any, values: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        """What is as long as there is something in a mask."""
        mask = rest[0] if rest else values
        with _disable_current_modes():
            count = int(self.values(mask).count_nonzero())
        if function is _SELECTS:
            return values.new_empty(count)
        return values.new_empty(count, values.dim(), dtype=torch.int64)

    def _followed(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Of results that known values say, the shapes."""
        with _disable_current_modes():
            read = pytree.tree_map_only(torch.Tensor, self.values, (args, kwargs))
            made = function(*read[0], **read[1])
        return pytree.tree_map(lambda each: args[0].new_empty(each.shape, dtype=each.dtype), made)

    def _places(self, indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Indices with numbers in the place of masks, as many as those take."""
        places: list[torch.Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype == torch.bool:
                with _disable_current_modes():
                    count = int(self.values(index).count_nonzero())
                places += [index.new_empty(count, dtype=torch.int64) for _ in index.shape]
            else:
                places.append(index)
        return places

    def answer(self, tensor: torch.Tensor) -> Any:
        """A scalar's value: the known one, or nought."""
        with _disable_current_modes():
            return self.values(tensor).item()

    def values(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor's values on the host: the known ones, or noughts."""
        if tensor.device.type != "cpu":
            self.waited()
        value = self.known.of(tensor)
        if value is not None:
            return value
        with _disable_current_modes():
            return torch.zeros(tensor.shape, dtype=tensor.dtype)

    def waited(self, for_event: bool = False) -> None:
        """The host waits for the device: for all that it has queued, or for an event."""
        who = _who()
        self.waits[who] += 1
        self.drained.update(() if for_event else (who,))


def count_waits(observer: Observer, replacer: Replacer) -> None:
    """Have whoever waits for a device, a stream or an event say so."""

    def counting(for_event: bool, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def synchronize(*args: Any, **kwargs: Any) -> Any:
            observer.waited(for_event)
            return original(*args, **kwargs)

        return synchronize

    for waiting in ("synchronize", "Stream.synchronize", "Event.synchronize"):
        for_event = waiting.startswith("Event")
        replacer.wrap(f"torch.cuda:{waiting}", functools.partial(counting, for_event))


def _reaches_host(function: Any, args: Any, kwargs: Any, result: torch.Tensor) -> bool:
    """Whether a copy comes from the device, and the host waits until it is there."""
    if result.device.type != "cpu":
        return False
    source, *rest = args if function is torch.ops.aten._to_copy.default else args[1:]
    return source.device.type != "cpu" and not any(rest) and not kwargs.get("non_blocking")


def _who() -> str:
    """The code that waits, outside torch and this room: file and function."""
    frame = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(("torch", "dsv3_plugin.rehearsal")):
            return f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "torch"
