"""Reducing gradients over data-parallel ranks while a step still computes others.

Upstream's `--overlap-grad-reduce` counts a gradient as there when autograd reaches its parameter.
For a weight gradient that is still owed (`split_backward.py`) that is too early, and upstream's own
schedules alone tell it which micro-batch is the last. Our schedules know: after the last `B` or `W`
of a chunk its gradients are whole, and upstream's own bucket groups reduce them from then on as
they would at the end: the same buckets in the same collectives, so to the same bits.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.utils import unwrap_model

from dsv3_plugin.distributed.failures import naming_lost


class Reductions:
    """The reductions of one step on this rank.

    Args:
        chunks: of this rank, wrapped in upstream's DistributedDataParallel.
        force_all_reduce: reduce whole gradients, also where optimizer states are sharded.
    """

    def __init__(
        self, chunks: Sequence[DistributedDataParallel], force_all_reduce: bool | None
    ) -> None:
        self._chunks = chunks
        self._force_all_reduce = force_all_reduce
        self._adds_to = [_adding_to(index, chunks) for index in range(len(chunks))]
        self._computed: set[int] = set()
        self._begun: set[int] = set()

    def begin(self, computed: int) -> None:
        """Begin those that need nothing more.

        Args:
            computed: the chunk whose last gradient of the step has been computed.
        """
        self._computed.add(computed)
        for index, chunk in enumerate(self._chunks):
            if index not in self._begun and self._adds_to[index] <= self._computed:
                self._begun.add(index)
                everyone = range(torch.distributed.get_world_size())
                with _asynchronous([chunk]), naming_lost("the sum of the gradients", everyone):
                    for group in [*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups]:
                        group.start_grad_sync(self._force_all_reduce)

    def waited_for(self) -> contextlib.AbstractContextManager[None]:
        """Inside, upstream's end of a step waits for them instead of reducing."""
        return _asynchronous(self._chunks)


def reductions(chunks: Sequence[Any], force_all_reduce: bool | None) -> Reductions | None:
    """The reductions of a step that can overlap with it; None: they come at its end.

    Not where gradients have another way to go first: DualPipe's are added to those of the replica,
    and several instances of the distributed optimizer reduce on a stream that upstream makes for
    its own overlap alone.
    """
    if parallel_state.get_data_parallel_world_size(with_context_parallel=True) == 1:
        return None
    for chunk in chunks:
        if not isinstance(chunk, DistributedDataParallel):
            return None
        config = chunk.ddp_config
        if config.num_distributed_optimizer_instances > 1 or config.overlap_grad_reduce:
            return None
        if config.reduce_scatter_with_fp32_accumulation or hasattr(unwrap_model(chunk), "replicas"):
            return None
    return Reductions(chunks, force_all_reduce)


def _adding_to(index: int, chunks: Sequence[Any]) -> set[int]:
    """The chunks whose backwards add to the gradients of chunk `index`: it, and who borrows its
    embedding (`chunks.join_chunks`)."""
    embedding = vars(unwrap_model(chunks[index]))["_modules"].get("embedding")
    borrowers = (
        number
        for number, chunk in enumerate(chunks)
        if embedding is not None and vars(unwrap_model(chunk)).get("embedding") is embedding
    )
    return {index, *borrowers}


@contextlib.contextmanager
def _asynchronous(chunks: Sequence[DistributedDataParallel]) -> Iterator[None]:
    """Inside, upstream's bucket groups begin without waiting, and wait where they finish.

    The setting is that of upstream's overlap, which its hooks must not see during a backward.
    """
    for chunk in chunks:
        chunk.ddp_config.overlap_grad_reduce = True
    try:
        yield
    finally:
        for chunk in chunks:
            chunk.ddp_config.overlap_grad_reduce = False
