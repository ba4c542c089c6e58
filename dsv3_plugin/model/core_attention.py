"""Causal core attention of the local backend, in torch alone.

softmax(q kᵀ · scale) v with keys wider than values, which upstream's own local core attention does
not take, and with more keys than queries, whose last is then the last key's.
"""

from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch import Tensor

from dsv3_plugin.distributed.packs import sample_lengths
from dsv3_plugin.errors import UserError
from dsv3_plugin.model import rounded_once

QUERY_BLOCK = 32
"""Queries that share one product with their keys: small, so that few masked scores are computed."""

LONGEST_KEPT = 1024
"""Longest sequence whose probabilities are kept for backward (half of s² per head)."""


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
        if attention_mask is None and _fits_blocks(query, key):
            return _CausalInBlocks.apply(query, key, value, self.softmax_scale)
        if attention_mask is not None:
            visible = ~attention_mask
        else:
            visible = None if len(query) == len(key) else _visible(query, key)
        return _attend(query, key, value, visible, self.softmax_scale)

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSeqParams) -> Tensor:
        """Attention inside each sample of a pack, [t, heads · d of values]."""
        # Padding between samples, where there is any, attends within its sample and is masked out
        # of the loss; so the padded boundaries are the ones that cover every row.
        starts: dict[int, list[int]] = {}
        for a, b in pairwise(accumulate(sample_lengths(query.shape[0], packed), initial=0)):
            starts.setdefault(b - a, []).append(a)
        # Those of one length are a batch: a pack may be of hundreds of short ones.
        rows = [_rows(begin, length, query.device) for length, begin in starts.items()]
        outs = [
            self.forward(_taken(query, which), _taken(key, which), _taken(value, which), None)
            for which in rows
        ]
        order = torch.cat([which.flatten() for which in rows])
        out = torch.cat([out.flatten(0, 1) for out in outs])
        return out.index_select(0, order.argsort())


def _rows(starts: list[int], length: int, device: torch.device) -> Tensor:
    """Rows of samples of one length, [length, samples]."""
    begin = torch.tensor(starts, device=device)
    return torch.arange(length, device=device)[:, None] + begin


def _taken(rows: Tensor, which: Tensor) -> Tensor:
    """[t, heads, d] → [length, samples, heads, d]."""
    return rows.index_select(0, which.flatten()).unflatten(0, which.shape)


def _fits_blocks(query: Tensor, key: Tensor) -> bool:
    short = not query.is_cuda and query.dtype == torch.float32 and len(key) <= LONGEST_KEPT
    return short and not rounded_once.here()  # torch's own is one sum, of whatever length


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
        before = len(key) - length
        out = query.new_empty(length, q.shape[0], width)
        future = torch.full((QUERY_BLOCK, QUERY_BLOCK), float("-inf")).triu(1)
        blocks = []
        for start in range(0, length, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, length)
            seen, own = before + end, end - start
            scores = torch.bmm(q[:, start:end], k[:, :seen].transpose(1, 2))
            scores[:, :, before + start :] += future[:own, :own]
            torch.softmax(scores, dim=-1, out=scores)
            out[start:end] = torch.bmm(scores, v[:, :seen]).transpose(0, 1)
            blocks.append(scores)
        ctx.save_for_backward(q, k, v, *blocks)
        ctx.scale, ctx.heads = scale, query.shape[2]
        return out.view(length, query.shape[1], -1)

    @staticmethod
    def backward(ctx, grad_out) -> tuple[Tensor | None, ...]:
        q, k, v, *blocks = ctx.saved_tensors
        batch, length = q.shape[:2]
        grads = grad_out.reshape(length, batch, -1).transpose(0, 1)
        grad_q = q.new_empty(length, batch, q.shape[-1])
        grad_k, grad_v = k.new_zeros(k.shape), v.new_zeros(v.shape)
        for index, probs in enumerate(blocks):
            start = index * QUERY_BLOCK
            end, seen = start + probs.shape[1], probs.shape[2]
            grad = grads[:, start:end]
            grad_v[:, :seen] += torch.bmm(probs.transpose(1, 2), grad)
            grad_scores = torch.bmm(grad, v[:, :seen].transpose(1, 2))
            torch._softmax_backward_data(
                grad_scores, probs, -1, grad_scores.dtype, grad_input=grad_scores
            )
            grad_k[:, :seen] += torch.bmm(grad_scores.transpose(1, 2), q[:, start:end])
            block = torch.bmm(grad_scores, k[:, :seen])
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
