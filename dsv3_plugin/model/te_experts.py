"""Transformer Engine's experts, SwiGLU's input kept in FP8 and its output computed again.

As DeepSeek-V3 (arXiv 2412.19437, section 3.3.3). Upstream has each half by itself: with
`activation_func_fp8_input_store` the input is kept in FP8 and the output for the next product
besides, with `moe_act` recomputed the input alone, as it was computed. Of a row of experts of
width f those are 3f and 4f bytes, and here 2f.

The cast is upstream's: E4M3 without a scale, which saturates at 448. The gradients of gate and up,
and the output that is computed again for the gradient of the second product's weight, carry E4M3's
rounding, three bits behind the point; the forward does not.
"""

from functools import partial
from typing import Any

import torch
from megatron.core.fusions.fused_bias_swiglu import weighted_swiglu
from megatron.core.tensor_parallel import random
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput
from megatron.core.transformer.moe.experts import TEGroupedMLP
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


def experts_for(config: TransformerConfig, experts: Any) -> Any:
    """What builds the experts of a layer, ours where upstream's would keep more than is asked.

    Args:
        config: of the layers.
        experts: what upstream's spec builds them with.
    """
    both = config.activation_func_fp8_input_store and (
        config.recompute_granularity == "selective" and "moe_act" in config.recompute_modules
    )
    if both and isinstance(experts, partial) and experts.func is TEGroupedMLP:
        return partial(RecomputingExperts, *experts.args, **experts.keywords)
    return experts


class RecomputingExperts(TEGroupedMLP):
    """Upstream's grouped experts, SwiGLU's output computed from its input in FP8."""

    @property
    def activation_checkpoint(self) -> "SwiGLUFromFP8":
        """What upstream's forward recomputes with; it makes one anew each time."""
        return self._activation_checkpoint

    @activation_checkpoint.setter
    def activation_checkpoint(self, upstreams: CheckpointWithoutOutput) -> None:
        self._activation_checkpoint = SwiGLUFromFP8()


class SwiGLUFromFP8:
    """In the place of upstream's `CheckpointWithoutOutput`, for SwiGLU alone.

    Upstream's keeps the inputs of a function and runs it again. SwiGLU, told to, keeps its input in
    FP8 by itself: that is where its output is made from again.
    """

    def checkpoint(self, swiglu: Any, gate_up: Tensor, bias: None, weights: Tensor) -> Tensor:
        """p · silu(g) ∘ u.

        Args:
            swiglu: upstream's, keeping its input in FP8.
            gate_up: [rows, 2 · width], g before u.
            bias: experts have none.
            weights: [rows, 1], p.
        """
        self._output = swiglu(gate_up, bias, weights)
        return self._output

    def discard_output_and_register_recompute(self, hook_tensor: Tensor) -> None:
        """Free the output; it is made again when the gradient of `hook_tensor` is there."""
        output = self._output
        del self._output
        swiglu = output.grad_fn  # WeightedSwiGLUFunction, with what it keeps
        if swiglu is None:
            return  # in an evaluation, nobody will want it again
        output.untyped_storage().resize_(0)

        def make_again(_: Tensor) -> None:
            gate_up, weights = swiglu.saved_tensors
            with torch.no_grad():
                again = weighted_swiglu(gate_up.to(output.dtype), weights)
            random._get_share_storage()(output, again)

        hook_tensor.register_hook(make_again)
