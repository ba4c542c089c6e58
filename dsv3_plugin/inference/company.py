"""The ranks that make texts together, step by step, and what they tell each other.

A pipeline's ranks have one engine between them, each a copy of it: of what is asked, which tokens
run and which pages they have, every rank comes to the same by itself. Told are the few things that
only one knows: the first rank what it was asked, what was cancelled and whose time is over; the one
with the head what was drawn. Ranks that divide experts have engines of their own, with requests of
their own, and step together since tokens of each need experts of the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


@dataclass(frozen=True)
class Company:
    """Who computes with this rank.

    Attributes:
        pipeline: ranks with the other layers; None: there are none.
        experts: ranks with the other experts of this rank's layers; None: there are none.
        head: the place in the pipeline that has the model's head.
        device: of the model.
    """

    pipeline: dist.ProcessGroup | None
    experts: dist.ProcessGroup | None
    head: int
    device: torch.device

    @classmethod
    def of(cls, config: TransformerConfig, head: int, device: torch.device) -> "Company":
        """That of this rank, by Megatron's groups."""
        pipeline = experts = None
        if config.pipeline_model_parallel_size > 1:
            pipeline = parallel_state.get_pipeline_model_parallel_group()
        if config.expert_model_parallel_size > 1:
            experts = parallel_state.get_expert_model_parallel_group()
        return cls(pipeline, experts, head, device)

    @property
    def alone(self) -> bool:
        """Whether this rank needs no other."""
        return self.pipeline is None and self.experts is None

    @property
    def leads(self) -> bool:
        """Whether this rank is asked, and not told."""
        return self.pipeline is None or dist.get_rank(self.pipeline) == 0

    def from_leader[Value](self, value: Value) -> Value:
        """What the first rank of the pipeline says."""
        return self._from(0, value)

    def from_head[Value](self, value: Value) -> Value:
        """What the rank with the head says."""
        return self._from(self.head, value)

    def _from(self, place: int, value: Any) -> Any:
        if self.pipeline is None:
            return value
        told = [value]
        dist.broadcast_object_list(told, group=self.pipeline, group_src=place, device=self.device)
        return told[0]

    def of_pipeline[Value](self, value: Value) -> list[Value]:
        """What each rank of the pipeline says, in their order."""
        if self.pipeline is None:
            return [value]
        said: list[Any] = [None] * dist.get_world_size(self.pipeline)
        dist.all_gather_object(said, value, group=self.pipeline)
        return said

    def most(self, numbers: Sequence[int]) -> list[int]:
        """Of each number the greatest that any rank says."""
        if self.alone:
            return list(numbers)
        said = torch.tensor(numbers, device=self.device)
        for group in (self.pipeline, self.experts):
            if group is not None:
                dist.all_reduce(said, dist.ReduceOp.MAX, group=group)
        return said.tolist()

    def least_of_pipeline(self, number: int) -> int:
        """The smallest number that a rank of the pipeline says."""
        return min(self.of_pipeline(number))


class ExpertRanks:
    """The exchange of tokens between ranks that divide experts: all see the tokens of all.

    A step of decoding has few of them, and they are known to be few, so nobody has to be told how
    many rows go where. A rank without a token takes part.

    Args:
        group: the ranks.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        self._counts = [0] * self._size

    def expect(self, rows: int, device: torch.device) -> None:
        """Say how many rows this rank has in the layers that come, and hear it of the others."""
        counts = torch.empty(self._size, dtype=torch.int64, device=device)
        dist.all_gather_into_tensor(counts, torch.tensor([rows], device=device), group=self._group)
        self._counts = counts.tolist()

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows [t, …] of all ranks, in their order."""
        most = max(self._counts)
        if not most:
            return rows
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        every = rows.new_empty(self._size * most, *rows.shape[1:])
        dist.all_gather_into_tensor(every, padded, group=self._group)
        pieces = zip(every.split(most), self._counts, strict=True)
        return torch.cat([piece[:count] for piece, count in pieces])

    def summed(self, rows: Tensor) -> Tensor:
        """Of the rows of all ranks the sums over ranks; this rank's own."""
        if len(rows):
            dist.all_reduce(rows, group=self._group)
        begin = sum(self._counts[: self.rank])
        return rows[begin : begin + self._counts[self.rank]]
