"""SwiGLU feed-forward blocks of the local backend: dense layers and shared experts."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP
from torch import Tensor

from dsv3_plugin.dispatch.shared_expert import SharedExpertInSteps


class _SwiGLUForward:
    """w₂ (silu(g) ∘ u) with [g; u] = w₁ x: what upstream computes, in fewer passes over memory."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """[s, b, h] → [s, b, h], and no bias."""
        gate_up, _ = self.linear_fc1(hidden_states)
        return self.linear_fc2(_SwiGLU.apply(gate_up))


class DenseMLP(_SwiGLUForward, MLP):
    """The feed-forward block of a dense layer; upstream's parameters and checkpoint keys."""


class SharedExpert(SharedExpertInSteps):
    """The shared experts of a MoE layer; upstream's parameters and checkpoint keys."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[s, b, h] → [s, b, h]."""
        output, _ = _SwiGLUForward.forward(self, hidden_states)
        return output


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(F.silu(gate), grad, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grad_gate_up
