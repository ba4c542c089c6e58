"""Over which ranks the gradient of each parameter is summed in a step."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from dsv3_plugin.rehearsal.gradients import Gradient, Range, gradients_of, range_of

_SUMS = {
    "allreduce_",
    "allreduce_coalesced_",
    "_reduce_scatter_base_",
    "reduce_scatter_",
    "reduce_scatter_tensor_coalesced_",
}


class Sums:
    """Follows the sums of gradients (a `Watcher`), from `watch` on."""

    def __init__(self) -> None:
        self._buffers: set[int] = set()
        self._gradients: list[Gradient] = []
        self._summed: dict[int, list[tuple[Range, tuple[int, ...]]]] = defaultdict(list)

    def watch(self, chunks: Sequence[torch.nn.Module]) -> None:
        """Begin, with the chunks of a rank in upstream's DistributedDataParallel."""
        self._gradients = list(gradients_of(chunks))
        self._buffers = {gradient.place.storage for gradient in self._gradients}

    def by_parameter(self) -> dict[str, list[tuple[int, ...]]]:
        """Parameter → the groups that its gradient was summed over; all that train are there."""
        found: dict[str, list[tuple[int, ...]]] = {}
        for gradient in self._gradients:
            place = gradient.place
            groups = (group for summed, group in self._summed[place.storage] if summed.holds(place))
            found[gradient.name] = list(dict.fromkeys(groups))
        return found

    def issued(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        if function.namespace != "c10d" or function.overloadpacket.__name__ not in _SUMS:
            return
        group = next(value for value in args if isinstance(value, torch.ScriptObject))
        members = tuple(dist.get_process_group_ranks(dist.ProcessGroup.unbox(group)))
        for tensor in pytree.tree_leaves(args):
            if isinstance(tensor, torch.Tensor):
                summed = range_of(tensor)
                if summed.storage in self._buffers:
                    self._summed[summed.storage].append((summed, members))

    def fused(self, name: str, read: Any, result: Any) -> None:
        pass  # nobody compiles sums
