"""Bytes that a step keeps alive, by following every tensor that an operation makes.

What was there before (weights, gradients, optimizer states) is not counted. Views of one storage
count once, a storage as long as anything holds it.
"""

import time
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_READINGS = 30
"""So many in a row, a millisecond apart, show what is kept behind a collective: none is less."""


class LiveStorages:
    """The storages made since it began to watch that are still there.

    Args:
        before: tensors that were there.

    Attributes:
        most: the most bytes at once, after any operation, without messages that left.
    """

    def __init__(self, before: Iterable[torch.Tensor]) -> None:
        self._before = {tensor.untyped_storage().data_ptr() for tensor in before}
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._left: list[weakref.ref[Any]] = []
        self._sent = False  # by a collective, since it was last seen what is kept
        self.most = 0

    def watching(self) -> TorchDispatchMode:
        """Follows the operations of the thread that enters it."""
        return _Watch(self)

    def made(self, tensor: torch.Tensor) -> bool:
        """Take note of a tensor; whether its memory is new."""
        storage = tensor.untyped_storage()
        key = id(storage)  # torch gives a storage one Python object for as long as it lives
        if key in self._alive or storage.data_ptr() in self._before:
            return False
        self._alive[key] = weakref.ref(storage, lambda _: self._alive.pop(key, None))
        return True

    def most_may_be_now(self) -> None:
        """Look whether there is more than ever."""
        kept = self.kept()
        if kept > self.most and self._sent:
            kept = self._settled(kept)
            self._sent = False
        self.most = max(self.most, kept)

    def sends(self) -> None:
        """Take note of a collective: its thread may hold tensors a little longer than its work."""
        self._sent = True

    def _settled(self, kept: int) -> int:
        """What is kept when threads of gloo have let go of what they sent.

        As long as they still do, it goes on; and only as long as it would be the most.
        """
        unchanged = 0
        while kept > self.most and unchanged < _READINGS:
            time.sleep(0.001)
            now = self.kept()
            unchanged = 0 if now < kept else unchanged + 1
            kept = min(kept, now)
        return kept

    def leaves(self, tensor: torch.Tensor | None) -> None:
        """Take note of a message to another rank, which `kept` never counts."""
        if tensor is not None:
            self._left.append(weakref.ref(tensor.untyped_storage()))

    def kept(self, waiting: Iterable[torch.Tensor] = ()) -> int:
        """Bytes of what is alive, but for messages: those that left, and those that wait."""
        self._left = [entry for entry in self._left if entry() is not None]
        storages = [*(entry() for entry in self._left), *(t.untyped_storage() for t in waiting)]
        messages = {storage.data_ptr() for storage in storages}
        return sum(size for where, size in self._sizes().items() if where not in messages)

    def _sizes(self) -> dict[int, int]:
        """By address: recomputation has a second storage object for the same memory."""
        alive = [reference() for reference in list(self._alive.values())]
        return {storage.data_ptr(): storage.nbytes() for storage in alive if storage is not None}


class _Watch(TorchDispatchMode):
    def __init__(self, live: LiveStorages) -> None:
        super().__init__()
        self._live = live

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if function.namespace == "c10d":
            self._live.sends()
        if any([self._live.made(leaf) for leaf in leaves]):
            self._live.most_may_be_now()
        return result
