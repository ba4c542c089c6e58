"""Memory by part, at every moment: each storage as long as anything holds it.

torch's own tracker refuses modules that are called twice before their backward, so it cannot follow
the micro-batches of a pipeline.
"""

import contextlib
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

ACTIVATIONS = "activations"


@dataclass(frozen=True)
class _Alive:
    """A storage that is held by something.

    Attributes:
        reference: to it, weak.
        part: which it belongs to.
        size: bytes.
        era: in which it was made.
    """

    reference: Any
    part: str
    size: int
    era: Hashable


class Storages:
    """Follows what operations make, on one device (a `Watcher`).

    Attributes:
        now: part → bytes that are alive.
        fullest: the same at the moment when there were most.
        era: what is made now belongs to; whoever wants to tell eras apart moves it on.
        by_era: era → bytes made in it that are alive.
    """

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type
        self._alive: dict[int, _Alive] = {}
        self._here = threading.local()  # the two sides of a pair are in the middle of their own
        self.now: dict[str, int] = defaultdict(int)
        self.total = 0
        self.most = 0
        self.fullest: dict[str, int] = {}
        self.era: Hashable = None
        self.by_era: Counter[Hashable] = Counter()

    def issued(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.take(leaf)

    def fused(self, name: str, read: Any, result: Any) -> None:
        self.issued(None, (), {}, result)

    def take(self, tensor: torch.Tensor, part: str | None = None) -> None:
        """Count the storage of a tensor, if it is not counted yet; or as another part."""
        if tensor.device.type != self._device_type or hasattr(tensor, "_INNER_TENSORS"):
            return  # a quantised tensor has no storage beside those of its parts
        storage = tensor.untyped_storage()
        key = id(storage)  # torch gives a storage one Python object for as long as it lives
        known = self._alive.get(key)
        if known is not None:
            if part is not None and known.part != part:
                self._drop(key)
                self._keep(key, replace(known, part=part))
            return
        part = part or getattr(self._here, "part", ACTIVATIONS)
        reference = weakref.ref(storage, lambda _: self._drop(key))
        self._keep(key, _Alive(reference, part, storage.nbytes(), self.era))

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage was emptied, or filled again."""
        key = id(storage)
        if key in self._alive:
            known = self._drop(key)
            self._keep(key, replace(known, size=storage.nbytes()))

    def begin_moment(self) -> None:
        """Look for the fullest moment from here on."""
        self.most, self.fullest = self.total, dict(self.now)

    @contextlib.contextmanager
    def as_part(self, part: str) -> Iterator[None]:
        """What is made inside belongs to a part."""
        before = getattr(self._here, "part", ACTIVATIONS)
        self._here.part = part
        try:
            yield
        finally:
            self._here.part = before

    def claim(self, part: str, tensors: Iterable[torch.Tensor]) -> None:
        """Say of what part tensors that are there already are."""
        for tensor in tensors:
            self.take(tensor, part)

    def _keep(self, key: int, alive: _Alive) -> None:
        self._alive[key] = alive
        self._add(alive, alive.size)

    def _drop(self, key: int) -> _Alive:
        alive = self._alive.pop(key)
        self._add(alive, -alive.size)
        return alive

    def _add(self, alive: _Alive, size: int) -> None:
        self.now[alive.part] += size
        self.by_era[alive.era] += size
        self.total += size
        if self.total > self.most:
            self.most, self.fullest = self.total, dict(self.now)
