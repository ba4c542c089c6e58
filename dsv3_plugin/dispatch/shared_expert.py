"""The shared expert, computed while the hop between nodes is under way, on its caller's stream.

Upstream's `moe_shared_expert_overlap` takes a shared expert in steps, which a dispatcher calls
between its own, and runs them on a second CUDA stream of the process. Two things go wrong there
with weight gradients that are left owed (upstream forbids the two together):

* Transformer Engine has one cuBLAS workspace per device; two products on two streams write it at
  once.
* What the second stream saved for the weight gradient is freed after a product on the first; the
  allocator gives the block to the second stream's next tensor, and that product still reads it.

A second stream is not needed here: a hop runs on NCCL's own stream, so between its start and its
end the stream of the caller has nothing to do, and the steps are run there. The dispatcher of two
hops calls them so (`two_hop.py`), and autograd runs the backward of an operation on the stream of
its forward.
"""

import copy
from typing import Any

import torch
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.transformer_config import TransformerConfig

from dsv3_plugin.dispatch.moe_layer import dispatch_of


class SharedExpertInSteps(SharedExpertMLP):
    """Upstream's shared expert; in steps on the current stream where the dispatch hides it.

    Elsewhere it is upstream's, with a stream of its own if upstream's option says so.
    """

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        self._on_callers_stream = dispatch_of(config).hide_shared_expert
        if self._on_callers_stream:
            config = copy.copy(config)
            config.moe_shared_expert_overlap = True  # upstream's word for: in steps
        super().__init__(config, *args, **kwargs)

    @property
    def stream(self) -> torch.cuda.Stream:
        """Where the steps run."""
        return torch.cuda.current_stream() if self._on_callers_stream else self._own_stream

    @stream.setter
    def stream(self, own: torch.cuda.Stream) -> None:
        self._own_stream = own

    def wait_current_stream(self) -> None:
        """Upstream's wait of its stream for the caller's."""
        if not self._on_callers_stream:
            super().wait_current_stream()
