"""Whether each parameter's gradient is given in a step, and added to what other micro-batches gave.

Gradients are values, and nobody computes any here; but what an operation writes, and whether it
reads that too, is seen.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from dsv3_plugin.rehearsal.gradients import Gradient, Range, gradients_of, range_of
from dsv3_plugin.rehearsal.te.kernels import Kernel

_EMPTY = {"zero_", "fill_"}
"""Operations after which a gradient is as if none were given."""
_CARRY = {"mul_", "div_", "copy_", "_foreach_mul_", "_foreach_div_", "_foreach_copy_"}
"""Operations that scale gradients, or bring them back from where they were summed."""


class Accumulation:
    """Follows what is written to gradients (a `Watcher`), from `watch` on.

    Attributes:
        overwritten: parameters whose gradient lost what it had been given.
        rounded: those whose gradient is added up in fewer bits than FP32 has.
    """

    def __init__(self) -> None:
        self._gradients: dict[int, list[Gradient]] = {}
        self._given: set[str] = set()
        self.overwritten: dict[str, None] = {}
        self.rounded: tuple[str, ...] = ()

    def watch(self, chunks: Sequence[torch.nn.Module], *, experts: bool) -> None:
        """Begin, with the chunks of a rank in upstream's DistributedDataParallel.

        Args:
            chunks: of the rank.
            experts: whether each of its experts has tokens; if not, they are left out.
        """
        by_storage: dict[int, list[Gradient]] = defaultdict(list)
        found = list(gradients_of(chunks))
        self.rounded = tuple(one.name for one in found if one.width < torch.float32.itemsize)
        for gradient in found:
            if experts or not gradient.expert:
                by_storage[gradient.place.storage].append(gradient)
        for gradients in by_storage.values():
            gradients.sort(key=lambda gradient: gradient.place.begin)
        self._gradients = dict(by_storage)

    def missing(self) -> list[str]:
        """Parameters that train and were given no gradient."""
        return [
            gradient.name
            for gradients in self._gradients.values()
            for gradient in gradients
            if gradient.name not in self._given
        ]

    def issued(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        if not self._gradients or not function._schema.is_mutable or function.namespace == "c10d":
            return
        name = function.overloadpacket.__name__
        written, read = _operands(function, args, kwargs)
        places = [place for place in written if place.storage in self._gradients]
        if name in _EMPTY:
            for place in places:
                held = (
                    one.name for one in self._gradients[place.storage] if place.holds(one.place)
                )
                self._given.difference_update(held)
        elif name not in _CARRY:
            in_place = name.endswith("_")
            for place in places:
                self._write(place, adds=in_place or place in read)

    def fused(self, name: str, read: Any, result: Any) -> None:
        pass  # what is compiled returns what it makes

    def launched(self, kernel: Kernel) -> None:
        """A kernel of Transformer Engine's library, which reads what it adds to."""
        if not self._gradients or not kernel.reads:
            return
        for tensor in kernel.writes:
            place = range_of(tensor)
            if place.storage in self._gradients:
                self._write(place, adds=place in map(range_of, kernel.reads))

    def _write(self, place: Range, *, adds: bool) -> None:
        gradients = self._gradients[place.storage]
        index = bisect_right(gradients, place.begin, key=lambda one: one.place.begin) - 1
        if index < 0 or not gradients[index].place.holds(place):
            return
        name = gradients[index].name
        if name in self._given and not adds:
            self.overwritten[name] = None
        self._given.add(name)


def _operands(function: Any, args: Any, kwargs: Any) -> tuple[list[Range], list[Range]]:
    """What an operation writes to, and what else it reads."""
    written: list[Range] = []
    read: list[Range] = []
    for place, argument in enumerate(function._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        (written if writes else read).extend(_places(value))
    return written, read


def _places(value: Any) -> Iterator[Range]:
    leaves = pytree.tree_leaves(value)
    yield from (range_of(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))
