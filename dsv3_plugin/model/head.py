"""The output head's weight gradient, added to its FP32 sum without Apex.

The head is the one linear layer that is core's own on both backends, and with gradient-accumulation
fusion core's own linears need a kernel of Apex: where only Transformer Engine is installed, the
ranks that have the head would fail at their start, and all others wait for them. What the kernel
does is one product of cuBLAS that adds to its output, and torch has that too.

The gradient is computed with the rest of a backward, never owed (see model/linear.py): to wait it
would have to keep the gradient of the logits, the largest tensor of the step. Multi-token
prediction calls the same module a second time, and both calls add to the same sum.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel import layers
from torch import Tensor


class WeightGradientKernels:
    """Stands in for Apex's module `fused_weight_gradient_mlp_cuda`."""

    @staticmethod
    def wgrad_gemm_accum_fp32(total_input: Tensor, grad_output: Tensor, main_grad: Tensor) -> None:
        """main_grad += grad_outputᵀ · total_input.

        Args:
            total_input: [rows, in].
            grad_output: [rows, out], of the same type.
            main_grad: [out, in], in FP32.
        """
        if main_grad.dtype == total_input.dtype:
            main_grad.addmm_(grad_output.t(), total_input)
        else:
            torch.addmm(
                main_grad, grad_output.t(), total_input, out_dtype=main_grad.dtype, out=main_grad
            )

    wgrad_gemm_accum_fp16 = wgrad_gemm_accum_fp32
    """The same where the sum is of the operands' type."""


def build_without_apex(original: Callable[..., None]) -> Callable[..., None]:
    """Wraps `ColumnParallelLinear.__init__`, which refuses to accumulate without Apex."""

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, config: Any, **kwargs: Any) -> None:
        if layers._grad_accum_fusion_available or not config.gradient_accumulation_fusion:
            return original(self, *args, config=config, **kwargs)
        unfused = copy.copy(config)
        unfused.gradient_accumulation_fusion = False
        original(self, *args, config=unfused, **kwargs)
        self.config = config
        self.gradient_accumulation_fusion = True

    return __init__
