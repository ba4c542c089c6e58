"""Where the gradients of a rank's parameters lie: in upstream's buffers, in a range each.

What tensor-parallel ranks hold alike is not looked at across them: its gradients are summed as
copies, or are equal from the start.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model

_LAYER = re.compile(r"\blayers\.\d+$")


class Range(NamedTuple):
    """Bytes of a storage."""

    storage: int
    begin: int
    end: int

    def holds(self, other: "Range") -> bool:
        """Whether all of the other lies in it."""
        same = self.storage == other.storage
        return same and self.begin <= other.begin and other.end <= self.end


def range_of(tensor: torch.Tensor) -> Range:
    """Where a tensor lies, which is contiguous."""
    # torch gives a storage one Python object for as long as it lives, so its id is a name.
    begin = tensor.storage_offset() * tensor.element_size()
    end = begin + tensor.numel() * tensor.element_size()
    return Range(id(tensor.untyped_storage()), begin, end)


class Gradient(NamedTuple):
    """Of one parameter.

    Attributes:
        name: what all ranks call the same piece of the model, and no other.
        place: where it lies.
        expert: whether the parameter is an expert's.
        width: bytes of a value.
    """

    name: str
    place: Range
    expert: bool
    width: int


def gradients_of(chunks: Sequence[torch.nn.Module]) -> Iterator[Gradient]:
    """Of all parameters that train.

    Args:
        chunks: of a rank, in upstream's DistributedDataParallel.
    """
    for chunk in unwrap_model(list(chunks)):
        for path, parameter in chunk.named_parameters():
            if parameter.requires_grad and hasattr(parameter, "main_grad"):
                expert = not getattr(parameter, "allreduce", True)
                place = range_of(parameter.main_grad)
                width = parameter.main_grad.element_size()
                yield Gradient(_name(chunk, path, expert), place, expert, width)


def _name(chunk: torch.nn.Module, path: str, expert: bool) -> str:
    steps: list[str] = []
    told: list[str] = []
    for step in path.split("."):
        steps.append(step)
        here = ".".join(steps)
        numbered = _LAYER.search(here) and chunk.get_submodule(here)
        told.append(str(getattr(numbered, "layer_number", step)) if numbered else step)
    name = ".".join(told)
    if expert:
        rank = parallel_state.get_expert_model_parallel_rank()
        part = parallel_state.get_expert_tensor_parallel_rank()
        return f"{name} on expert rank {rank}, tensor rank {part}"
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        return f"{name} on tensor rank {parallel_state.get_tensor_model_parallel_rank()}"
    return name
