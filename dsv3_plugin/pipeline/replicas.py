"""DualPipe's two replicas of the model: kept equal.

Rank r holds stage r of the first replica and stage P-1-r of the second; rank P-1-r holds the same
two the other way round. Each replica sees half of the micro-batches, so before anything is done
with gradients, those of the two are added (arXiv 2412.19437, section 3.2.1), and with them the
token counts that move the router's biases. From equal weights and equal gradients the optimizer
then keeps the replicas equal.
"""

from collections.abc import Iterator

import torch
from megatron.core import parallel_state

from dsv3_plugin.distributed.failures import naming_lost, timeout_of
from dsv3_plugin.schedules.placement import Placement


class Replicas:
    """This rank's two chunks and the rank that holds the other replica of both.

    Making it takes the two, and every rank of the world has to make its own. It belongs to the
    chunks (`chunks.join_chunks` makes it), and goes with them.

    Attributes:
        group: the two ranks.
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        pipeline = parallel_state.get_pipeline_model_parallel_group()
        self._ranks = mine = torch.distributed.get_process_group_ranks(pipeline)
        rank = parallel_state.get_pipeline_model_parallel_rank()
        # Every rank makes one group, so all go on with as many made.
        self.group = torch.distributed.new_group(
            [mine[rank], mine[-1 - rank]],
            timeout=timeout_of(pipeline),
            use_local_synchronization=True,
            group_desc="REPLICAS",
        )

    def _by_model_stage[C](self, chunks: list[C]) -> Iterator[tuple[int, C]]:
        """(global rank of the first replica, chunk), in an order that both ranks share."""
        rank = parallel_state.get_pipeline_model_parallel_rank()
        stages = [self._placement.model_stage(stage) for stage in self._placement.chunks[rank]]
        for stage, chunk in sorted(zip(stages, chunks, strict=True), key=lambda pair: pair[0]):
            yield self._ranks[self._placement.rank_of(stage)], chunk

    def equal_weights(self, chunks: list[torch.nn.Module]) -> None:
        """Give the second replica the weights and buffers of the first."""
        for source, chunk in self._by_model_stage(chunks):
            for tensor in [*chunk.parameters(), *chunk.buffers()]:
                torch.distributed.broadcast(tensor.data, source, group=self.group)

    def add_gradients(self, chunks: list[torch.nn.Module]) -> None:
        """Add the gradients and token counts of the two replicas.

        Args:
            chunks: wrapped in upstream's DistributedDataParallel.
        """
        for _, chunk in self._by_model_stage(chunks):
            tensors = [
                buffer.grad_data for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers]
            ]
            for module in chunk.module.modules():
                counts = getattr(module, "local_tokens_per_expert", None)
                if counts is not None:
                    tensors.append(counts)
            with naming_lost("the sum of the two copies' gradients", self._ranks):
                for tensor in tensors:
                    torch.distributed.all_reduce(tensor, group=self.group)
