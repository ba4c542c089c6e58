"""Multi-head latent attention of the local backend, in torch alone.

`CausalAttention` is the core: softmax(q kᵀ · scale) v with keys wider than values, which upstream's
own local core attention does not take. `LatentAttention` is upstream's MLA with what the family
needs and upstream's lacks: latents normed with eps 1e-6 (upstream uses `layernorm_epsilon`), models
without a Q latent (upstream insists on a fused norm there), weight gradients that can wait, and
rotation and assembly of queries and keys in one pass.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.multi_latent_attention import (
    MLASelfAttention,
    MLASelfAttentionSubmodules,
)
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch import Tensor

from dsv3_plugin.errors import UserError
from dsv3_plugin.model.linear import ColumnLinear
from dsv3_plugin.recipe.model import LATENT_NORM_EPSILON

QUERY_BLOCK = 32
"""Queries that share one product with their keys: small, so that few masked scores are computed."""

LONGEST_KEPT = 1024
"""Longest sequence whose probabilities are kept for backward (half of s² per head)."""


class LatentAttention(MLASelfAttention):
    """Upstream's MLA self-attention; same parameters, same checkpoint keys."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The norm of a latent stands alone (torch) or inside the up-projection (TE).
        for name in ("q_layernorm", "kv_layernorm", "linear_q_up_proj", "linear_kv_up_proj"):
            norm = getattr(self, name, None)
            if hasattr(norm, "eps"):
                norm.eps = LATENT_NORM_EPSILON
        # Upstream builds these two by comparing classes, so ours cannot be asked for in the spec.
        for name in ("linear_q_down_proj", "linear_kv_down_proj"):
            linear = getattr(self, name, None)
            if type(linear) is ColumnParallelLinear:
                ColumnLinear.of(linear)

    def _resolve_qk_norm_config(self, submodules: MLASelfAttentionSubmodules) -> dict[str, Any]:
        """Build what the spec says, no more.

        Upstream replaces a plain Q projection by a normed one when `qk_layernorm` is set; without a
        Q latent (V2-Lite, Moonlight) there is nothing to norm.
        """
        return {
            name: getattr(submodules, name)
            for name in (
                "linear_q_proj", "linear_q_up_proj", "linear_kv_up_proj",
                "q_layernorm", "kv_layernorm",
            )
        }  # fmt: skip

    def get_query_key_value_tensors(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        position_ids: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        inference_context: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values of hidden states [s, b, h] (DeepSeek-V2, equations 9 to 19).

        Returns:
            query, key: [s, b, heads, d]; value: [s, b, heads, d of values]; then the normed Q
            latent (or the hidden states) and the normed KV latent, as upstream returns them.
        """
        if hidden_states.is_cuda or not self._is_plain(
            packed_seq_params, inference_context, kwargs
        ):
            return super().get_query_key_value_tensors(
                hidden_states,
                key_value_states,
                position_ids,
                packed_seq_params,
                inference_context,
                **kwargs,
            )
        config = self.config
        q_latent, kv = self._qkv_down_projection(hidden_states)
        kv_latent, k_rotary = kv.split([config.kv_lora_rank, config.qk_pos_emb_head_dim], dim=-1)
        kv_latent = self.kv_layernorm(kv_latent)
        if config.q_lora_rank is not None:
            q_latent = self.q_layernorm(q_latent)
        inputs = q_latent, kv_latent, k_rotary, *self._rotation(len(hidden_states), kv.dtype)
        if self.recompute_up_proj:
            # Upstream's forward drops what comes out after the core has used it.
            self.qkv_up_checkpoint = CheckpointWithoutOutput(fp8=config.fp8 or None)
            query, key, value = self.qkv_up_checkpoint.checkpoint(self._up_project, *inputs)
        else:
            query, key, value = self._up_project(*inputs)
        return query, key, value, q_latent, kv_latent

    def _up_project(
        self, q_latent: Tensor, kv_latent: Tensor, k_rotary: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From latents to whole heads: query, key and value."""
        latent = self.config.q_lora_rank is not None
        q, _ = (self.linear_q_up_proj if latent else self.linear_q_proj)(q_latent)
        kv, _ = self.linear_kv_up_proj(kv_latent)
        heads = (self.num_attention_heads_per_partition, -1)
        return _Assemble.apply(
            q.unflatten(-1, heads),
            kv.unflatten(-1, heads),
            k_rotary,
            cos,
            sin,
            self.config.qk_head_dim,
        )

    def _is_plain(self, *special: Any) -> bool:
        """Whether our own way says all: whole sequences, nothing split or cached."""
        return (
            not any(special)  # packed samples, a cache, deprecated names
            and self.pg_collection.tp.size() == 1
            and self.pg_collection.cp.size() == 1
            and not self.config.apply_rope_fusion
            and not self.cache_mla_latents
        )

    def _rotation(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of each position and pair, [s, 1, 1, d / 2], YaRN's factor included."""
        angles, factor = self.rotary_pos_emb(length), 1.0
        if self.config.rope_type == "yarn":
            angles, factor = angles
        angles = angles[..., : angles.shape[-1] // 2]
        return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


class _Assemble(torch.autograd.Function):
    """Rotate the positional parts and lay out whole queries and keys, each written once.

    The pairs (x₀, x₁), (x₂, x₃), … of a rotary head are rotated, and come out as all first members
    followed by all second ones; queries and keys alike, so their products are as before.
    """

    @staticmethod
    def forward(ctx, q, kv, k_rotary, cos, sin, plain) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.plain, ctx.kv_shape = plain, kv.shape
        query = torch.empty_like(q)
        query[..., :plain] = q[..., :plain]
        _rotate(q[..., plain:], cos, sin, query[..., plain:])
        key = kv.new_empty(query.shape)
        key[..., :plain] = kv[..., :plain]
        rotated = torch.empty_like(k_rotary).unsqueeze(2)
        _rotate(k_rotary.unsqueeze(2), cos, sin, rotated)
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


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    first, second = x[..., 0::2], x[..., 1::2]
    half = first.shape[-1]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)


def _rotate_back(grad: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    first, second = grad.chunk(2, dim=-1)
    torch.mul(first, cos, out=out[..., 0::2]).addcmul_(second, sin)
    torch.mul(second, cos, out=out[..., 1::2]).addcmul_(first, sin, value=-1)


class CausalAttention(MegatronModule):
    """softmax(q kᵀ · scale) v, each query seeing the keys up to its own position."""

    def __init__(
        self,
        config: MLATransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        k_channels: int | None = None,
        v_channels: int | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        if config.context_parallel_size > 1:
            raise UserError(
                "The local backend has no context parallelism: set context_parallel_size to 1 "
                "or use transformer_impl transformer_engine."
            )
        dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        if dropout:
            raise UserError("The local backend has no attention dropout: set attention_dropout 0.")
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [s, b, heads, d], or [t, heads, d] for packed sequences.
            key: [s of keys, b, heads, d]; when longer than the query (a cache), the last query
                stands at the last key.
            value: [s of keys, b, heads, d of values].
            attention_mask: [b or 1, 1, s, s of keys], True where a query must not look; it replaces
                the causal mask and should contain it. None for plain causal attention.
            attn_mask_type: upstream's hint, not needed: attention here is causal.
            attention_bias: not supported.
            packed_seq_params: sample boundaries (`thd`); samples do not see each other.

        Returns:
            [s, b, heads · d of values], or [t, heads · d of values] for packed sequences.
        """
        if attention_bias is not None:
            raise UserError("The local backend's attention takes no attention_bias.")
        if packed_seq_params is not None:
            return self._packed(query, key, value, packed_seq_params)
        plain = attention_mask is None and query.shape[0] == key.shape[0]
        if plain and _fits_blocks(query):
            return _CausalInBlocks.apply(query, key, value, self.softmax_scale)
        if attention_mask is not None:
            visible = ~attention_mask
        else:
            visible = None if plain else _visible(query, key)
        return _attend(query, key, value, visible, self.softmax_scale)

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSeqParams) -> Tensor:
        """Attention inside each sample of a pack, [t, heads · d of values]."""
        if packed.qkv_format != "thd":
            raise UserError(f"Packed sequences must be 'thd', not '{packed.qkv_format}'.")
        # Padding between samples, where there is any, attends within its sample and is masked out
        # of the loss; so the padded boundaries are the ones that cover every row.
        ends = packed.cu_seqlens_q_padded
        ends = (packed.cu_seqlens_q if ends is None else ends).tolist()
        bounds = [*ends, query.shape[0]] if ends[-1] < query.shape[0] else ends
        samples = [
            self.forward(query[a:b, None], key[a:b, None], value[a:b, None], None)
            for a, b in pairwise(bounds)
            if a < b
        ]
        return torch.cat(samples).squeeze(1)


def _fits_blocks(query: Tensor) -> bool:
    return not query.is_cuda and query.dtype == torch.float32 and query.shape[0] <= LONGEST_KEPT


def _attend(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, scale: float | None
) -> Tensor:
    """torch's attention, [s, b, heads · d of values]; `visible` None means causal."""
    width = value.shape[-1]
    if not query.is_cuda and query.shape[-1] > width:
        # torch's CPU kernel that never holds all scores wants values as wide as keys.
        value = F.pad(value, (0, query.shape[-1] - width))
    q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, is_causal=visible is None, scale=scale
    )
    return out[..., :width].permute(2, 0, 1, 3).flatten(2)


def _visible(query: Tensor, key: Tensor) -> Tensor:
    """[s, s of keys], True where a query may look when the last query stands at the last key."""
    queries, keys = query.shape[0], key.shape[0]
    everything = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    return everything.tril(diagonal=keys - queries)


class _CausalInBlocks(torch.autograd.Function):
    """Causal attention of short sequences on a CPU, in blocks of queries.

    Twice as fast there as torch's own: a block of queries meets only the keys it may see, and the
    probabilities are kept instead of computed again. Batch and heads are one dimension of strided
    views, so nothing is transposed in memory.
    """

    @staticmethod
    def forward(ctx, query, key, value, scale) -> Tensor:
        q = _batch_first(query * scale)
        k, v = _batch_first(key), _batch_first(value)
        length, width = query.shape[0], value.shape[-1]
        out = query.new_empty(length, q.shape[0], width)
        future = torch.full((QUERY_BLOCK, QUERY_BLOCK), float("-inf")).triu(1)
        blocks = []
        for start in range(0, length, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, length)
            scores = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2))
            own = end - start
            scores[:, :, start:] += future[:own, :own]
            torch.softmax(scores, dim=-1, out=scores)
            out[start:end] = torch.bmm(scores, v[:, :end]).transpose(0, 1)
            blocks.append(scores)
        ctx.save_for_backward(q, k, v, *blocks)
        ctx.scale, ctx.heads = scale, query.shape[2]
        return out.view(length, query.shape[1], -1)

    @staticmethod
    def backward(ctx, grad_out) -> tuple[Tensor | None, ...]:
        q, k, v, *blocks = ctx.saved_tensors
        batch, length, width = v.shape
        grads = grad_out.reshape(length, batch, width).transpose(0, 1)
        grad_q = q.new_empty(length, batch, q.shape[-1])
        grad_k, grad_v = k.new_zeros(k.shape), v.new_zeros(v.shape)
        for index, probs in enumerate(blocks):
            start = index * QUERY_BLOCK
            end = start + probs.shape[1]
            grad = grads[:, start:end]
            grad_v[:, :end] += torch.bmm(probs.transpose(1, 2), grad)
            grad_scores = torch.bmm(grad, v[:, :end].transpose(1, 2))
            torch._softmax_backward_data(
                grad_scores, probs, -1, grad_scores.dtype, grad_input=grad_scores
            )
            grad_k[:, :end] += torch.bmm(grad_scores.transpose(1, 2), q[:, start:end])
            block = torch.bmm(grad_scores, k[:, :end])
            torch.mul(block.transpose(0, 1), ctx.scale, out=grad_q[start:end])
        return (
            grad_q.unflatten(1, (-1, ctx.heads)),
            grad_k.transpose(0, 1).unflatten(1, (-1, ctx.heads)),
            grad_v.transpose(0, 1).unflatten(1, (-1, ctx.heads)),
            None,
        )


def _batch_first(x: Tensor) -> Tensor:
    """[s, b, heads, d] as [b · heads, s, d], a view."""
    return x.flatten(1, 2).transpose(0, 1)
