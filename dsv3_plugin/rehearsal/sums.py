"""Over which ranks the gradient of each parameter is summed in a step.

Gradients are summed where they lie, in upstream's buffers. What tensor-parallel ranks hold alike is
not looked at across them: its gradients are summed as copies, or are equal from the start.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model
from torch.utils import _pytree as pytree

_SUMS = {
    "allreduce_",
    "allreduce_coalesced_",
    "_reduce_scatter_base_",
    "reduce_scatter_",
    "reduce_scatter_tensor_coalesced_",
}
_LAYER = re.compile(r"\blayers\.\d+$")


class _Range(NamedTuple):
    """Bytes of a storage."""

    storage: int
    begin: int
    end: int


class Sums:
    """Follows the sums of gradients (a `Watcher`), from `watch` on."""

    def __init__(self) -> None:
        self._buffers: set[int] = set()
        self._parameters: list[tuple[str, _Range]] = []
        self._summed: dict[int, list[tuple[_Range, tuple[int, ...]]]] = defaultdict(list)

    def watch(self, chunks: Sequence[torch.nn.Module]) -> None:
        """Begin, with the chunks of a rank in upstream's DistributedDataParallel."""
        self._parameters = list(_gradients(chunks))
        self._buffers = {gradient.storage for _, gradient in self._parameters}

    def by_parameter(self) -> dict[str, list[tuple[int, ...]]]:
        """Parameter → the groups that its gradient was summed over; all that train are there."""
        found: dict[str, list[tuple[int, ...]]] = {}
        for name, gradient in self._parameters:
            groups = (
                group
                for (_, begin, end), group in self._summed[gradient.storage]
                if begin <= gradient.begin and gradient.end <= end
            )
            found[name] = list(dict.fromkeys(groups))
        return found

    def issued(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        if function.namespace != "c10d" or function.overloadpacket.__name__ not in _SUMS:
            return
        group = next(value for value in args if isinstance(value, torch.ScriptObject))
        members = tuple(dist.get_process_group_ranks(dist.ProcessGroup.unbox(group)))
        for tensor in pytree.tree_leaves(args):
            if isinstance(tensor, torch.Tensor):
                summed = _range(tensor)
                if summed.storage in self._buffers:
                    self._summed[summed.storage].append((summed, members))

    def fused(self, name: str, read: Any, result: Any) -> None:
        pass  # nobody compiles sums


def _range(tensor: torch.Tensor) -> _Range:
    # torch gives a storage one Python object for as long as it lives, so its id is a name.
    begin = tensor.storage_offset() * tensor.element_size()
    end = begin + tensor.numel() * tensor.element_size()
    return _Range(id(tensor.untyped_storage()), begin, end)


def _gradients(chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, _Range]]:
    for chunk in unwrap_model(list(chunks)):
        for path, parameter in chunk.named_parameters():
            if parameter.requires_grad and hasattr(parameter, "main_grad"):
                yield _name(chunk, path, parameter), _range(parameter.main_grad)


def _name(chunk: torch.nn.Module, path: str, parameter: torch.nn.Parameter) -> str:
    """What all ranks call the same piece of the model, and no other."""
    steps: list[str] = []
    told: list[str] = []
    for step in path.split("."):
        steps.append(step)
        here = ".".join(steps)
        numbered = _LAYER.search(here) and chunk.get_submodule(here)
        told.append(str(getattr(numbered, "layer_number", step)) if numbered else step)
    name = ".".join(told)
    if not getattr(parameter, "allreduce", True):
        expert = parallel_state.get_expert_model_parallel_rank()
        part = parallel_state.get_expert_tensor_parallel_rank()
        return f"{name} on expert rank {expert}, tensor rank {part}"
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        return f"{name} on tensor rank {parallel_state.get_tensor_model_parallel_rank()}"
    return name
