"""The language-model loss on a CPU, where the logits of a token are on one rank.

Upstream's `vocab_parallel_cross_entropy` is written for logits split over ranks: ten passes over
the largest tensor of a small model, three collectives, and the logits destroyed in place. Here it
is log-softmax forward and, in the same buffer, softmax minus one backward.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.parallel_state import get_tensor_model_parallel_group
from torch import Tensor


def vocab_parallel_cross_entropy(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wraps `tensor_parallel.vocab_parallel_cross_entropy`; same arguments, same result."""

    @functools.wraps(original)
    def on_one_rank(
        vocab_parallel_logits: Tensor,
        target: Tensor,
        label_smoothing: float = 0.0,
        tp_group: Any = None,
    ) -> Tensor:
        group = tp_group if tp_group is not None else get_tensor_model_parallel_group()
        if vocab_parallel_logits.is_cuda or group.size() > 1 or label_smoothing:
            return original(vocab_parallel_logits, target, label_smoothing, tp_group)
        return _CrossEntropy.apply(vocab_parallel_logits, target)

    return on_one_rank


class _CrossEntropy(torch.autograd.Function):
    """-log p(target) of logits [..., vocabulary], in FP32.

    Of a target outside the vocabulary (-100, with which upstream's fine-tuning data mark what is
    not learned) upstream predicts the token it holds for likeliest, with the softmax alone as the
    gradient; whoever asks for such losses masks them. So here.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor) -> Tensor:
        log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        outside = (target < 0) | (target >= logits.shape[-1])
        target = target.masked_fill(outside, 0)
        loss = log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1).neg_()
        if outside.any():
            loss[outside] = log_probs[outside].amax(-1).neg_()
        ctx.save_for_backward(log_probs, target, outside)
        ctx.dtype = logits.dtype
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        log_probs, target, outside = ctx.saved_tensors
        # In place, as upstream: the largest tensor of the step exists once.
        grad_logits = log_probs.exp_().mul_(grad.unsqueeze(-1))
        grad_target = grad.masked_fill(outside, 0).neg_()
        grad_logits.scatter_add_(-1, target.unsqueeze(-1), grad_target.unsqueeze(-1))
        return grad_logits.to(ctx.dtype), None
