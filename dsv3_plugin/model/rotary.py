"""RoPE of the family, and laying out queries and keys, each written once.

The pairs (x₀, x₁), (x₂, x₃), … of a rotary head are rotated, and come out as all first members
followed by all second ones; queries and keys alike, so their products are as before. cos and sin
are of each position and pair, [s, 1, 1, d / 2], YaRN's factor included.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class Assemble(torch.autograd.Function):
    """Whole queries, keys and values of all heads, from their parts."""

    @staticmethod
    def forward(ctx, q, kv, k_rotary, cos, sin, plain) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.plain, ctx.kv_shape = plain, kv.shape
        query = torch.empty_like(q)
        query[..., :plain] = q[..., :plain]
        rotate(q[..., plain:], cos, sin, query[..., plain:])
        key = kv.new_empty(query.shape)
        key[..., :plain] = kv[..., :plain]
        rotated = torch.empty_like(k_rotary).unsqueeze(2)
        rotate(k_rotary.unsqueeze(2), cos, sin, rotated)
        key[..., plain:] = rotated
        return query, key, kv[..., plain:].contiguous()

    @staticmethod
    def backward(ctx, grad_query, grad_key, grad_value) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        plain = ctx.plain
        grad_q = torch.empty_like(grad_query, memory_format=torch.contiguous_format)
        grad_q[..., :plain] = grad_query[..., :plain]
        _rotate_back(grad_query[..., plain:], cos, sin, grad_q[..., plain:])
        grad_kv = grad_key.new_empty(ctx.kv_shape)
        grad_kv[..., :plain] = grad_key[..., :plain]
        grad_kv[..., plain:] = grad_value
        shared = grad_key[..., plain:].sum(dim=2, keepdim=True)
        grad_rotary = torch.empty_like(shared)
        _rotate_back(shared, cos, sin, grad_rotary)
        return grad_q, grad_kv, grad_rotary.squeeze(2), None, None, None


class RotateKey(torch.autograd.Function):
    """The rotary key that all heads share, [s, b, d]."""

    @staticmethod
    def forward(ctx, k_rotary: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        rotated = k_rotary.new_empty(k_rotary.shape).unsqueeze(2)
        rotate(k_rotary.unsqueeze(2), cos, sin, rotated)
        return rotated.squeeze(2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        back = grad.new_empty(grad.shape).unsqueeze(2)
        _rotate_back(grad.unsqueeze(2), cos, sin, back)
        return back.squeeze(2), None, None


class RotateQueries(torch.autograd.Function):
    """Queries [s, b, heads, d] with their positional parts rotated, by groups of heads.

    The result is [groups, s, b, heads / groups, d], each group in one piece.
    """

    @staticmethod
    def forward(ctx, q: Tensor, cos: Tensor, sin: Tensor, plain: int, groups: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.plain = plain
        q = q.unflatten(2, (groups, -1)).movedim(2, 0)
        query = q.new_empty(q.shape)
        query[..., :plain] = q[..., :plain]
        rotate(q[..., plain:], cos, sin, query[..., plain:])
        return query

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        plain = ctx.plain
        groups, length, batch, heads, width = grad.shape
        back = grad.new_empty(length, batch, groups, heads, width)
        by_group = back.movedim(2, 0)
        by_group[..., :plain] = grad[..., :plain]
        _rotate_back(grad[..., plain:], cos, sin, by_group[..., plain:])
        return back.flatten(2, 3), None, None, None, None


class AssembleKeys(torch.autograd.Function):
    """Keys and values of heads, from what is projected up for each and the rotated key of all.

    Values get as wide as asked for, with zeros.
    """

    @staticmethod
    def forward(ctx, kv: Tensor, rotated: Tensor, plain: int, width: int) -> tuple[Tensor, Tensor]:
        ctx.plain, ctx.kv_shape = plain, kv.shape
        key = kv.new_empty(*kv.shape[:-1], plain + rotated.shape[-1])
        key[..., :plain] = kv[..., :plain]
        key[..., plain:] = rotated.unsqueeze(2)
        value = kv[..., plain:]
        return key, F.pad(value, (0, width - value.shape[-1])).contiguous()

    @staticmethod
    def backward(ctx, grad_key: Tensor, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        plain = ctx.plain
        grad_kv = grad_key.new_empty(ctx.kv_shape)
        grad_kv[..., :plain] = grad_key[..., :plain]
        grad_kv[..., plain:] = grad_value[..., : ctx.kv_shape[-1] - plain]
        return grad_kv, grad_key[..., plain:].sum(dim=2), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Write rotary heads x [..., d], rotated, to `out`; without gradients."""
    first, second = x[..., 0::2], x[..., 1::2]
    half = first.shape[-1]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)


def _rotate_back(grad: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    first, second = grad.chunk(2, dim=-1)
    torch.mul(first, cos, out=out[..., 0::2]).addcmul_(second, sin)
    torch.mul(second, cos, out=out[..., 1::2]).addcmul_(first, sin, value=-1)
