"""Norms (csrc/extensions/normalization.cpp)."""

import math
from typing import Any

import torch
from torch import Tensor

from dsv3_plugin.rehearsal.te.kernels import Subject
from dsv3_plugin.rehearsal.te.quantized import Quantization, new_tensor, torch_type


class Norms(Subject):
    """RMSNorm and LayerNorm, forward and backward; statistics are one FP32 value a row."""

    def rmsnorm_fwd(
        self,
        input: Tensor,
        weight: Tensor,
        eps: float,
        ln_out: Any,
        quantizer: Any,
        otype: Any,
        sm_margin: int,
        zero_centered_gamma: bool,
    ) -> list[Any]:
        output, (rsigma,) = self._forward(input, [weight], ln_out, quantizer, otype, statistics=1)
        return [output, None, rsigma]

    def layernorm_fwd(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        ln_out: Any,
        quantizer: Any,
        otype: Any,
        sm_margin: int,
        zero_centered_gamma: bool,
    ) -> list[Any]:
        weights = [weight, bias]
        output, (mu, rsigma) = self._forward(input, weights, ln_out, quantizer, otype, statistics=2)
        return [output, mu, rsigma]

    def rmsnorm_bwd(
        self,
        dz: Tensor,
        x: Tensor,
        rsigma: Tensor,
        gamma: Tensor,
        sm_margin: int,
        zero_centered_gamma: bool,
    ) -> list[Tensor]:
        return self._backward([dz, x, rsigma], gamma, gradients=1)

    def rmsnorm_bwd_add(
        self,
        dz: Tensor,
        x: Tensor,
        add: Tensor,
        rsigma: Tensor,
        gamma: Tensor,
        sm_margin: int,
        zero_centered_gamma: bool,
    ) -> list[Tensor]:
        return self._backward([dz, x, rsigma, add], gamma, gradients=1)

    def layernorm_bwd(
        self,
        dz: Tensor,
        x: Tensor,
        mu: Tensor,
        rsigma: Tensor,
        gamma: Tensor,
        sm_margin: int,
        zero_centered_gamma: bool,
    ) -> list[Tensor]:
        return self._backward([dz, x, rsigma, mu], gamma, gradients=2)

    def _forward(
        self, x: Tensor, weights: list, output: Any, quantizer: Any, otype: Any, statistics: int
    ) -> tuple[Any, list[Tensor]]:
        rows, dtype = math.prod(x.shape[:-1]), torch_type(otype)
        kept = [torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(statistics)]
        if output is None:
            output = new_tensor(quantizer, x.shape, dtype, x.device)
        # Only delayed scaling is fused into the norm; what else is quantised goes through BF16.
        fused = quantizer is None or type(quantizer).__name__ == "Float8Quantizer"
        written = output if fused else torch.empty(x.shape, dtype=dtype, device=x.device)
        self.launch("norm_forward", [x, *weights], [written, *kept])
        if written is not output:
            Quantization(self.on_kernel).cast(quantizer, written, output)
        return output, kept

    def _backward(self, given: list[Tensor], gamma: Tensor, gradients: int) -> list[Tensor]:
        given = [tensor.contiguous() for tensor in given]
        dx = torch.empty_like(given[1])
        of_weights = [torch.empty_like(gamma) for _ in range(gradients)]
        self.launch("norm_backward", [*given, gamma], [dx, *of_weights])
        return [dx, *of_weights]
