"""RMSNorm of the local backend (arXiv 1910.07467): torch's module, with a shorter way on a CPU."""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class RMSNorm(torch.nn.RMSNorm):
    """y = x / sqrt(mean x² + eps) · w over the last dimension.

    On a CPU torch composes the norm and its gradient of a dozen elementwise operations; in FP32
    this one needs half of them.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float, **kwargs: Any
    ) -> None:
        super().__init__(hidden_size, eps=eps)
        # Each rank has some tokens' part of the gradient, and upstream sums what is marked.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        """Norm of [..., hidden], in the type of x."""
        if x.is_cuda or x.dtype != torch.float32:
            return super().forward(x)
        return _RMSNorm.apply(x, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(x, scale).mul_(weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        hidden = x.shape[-1]
        normed = x * scale
        product = grad * normed
        rows = product.reshape(-1, hidden)
        grad_weight = rows.sum(0)
        along = torch.mv(rows, weight).view(scale.shape).div_(-hidden)
        grad_x = torch.mul(grad, weight, out=product).addcmul_(normed, along).mul_(scale)
        return grad_x, grad_weight, None
