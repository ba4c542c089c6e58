"""Transformer Engine's core attention for a group of heads, over the keys of a whole sequence.

Where latents are gathered (`latent_context.py`) attention has no context parallelism of its own: a
rank has the keys it needs. It sees them up to the last query's, which stands at the last key.
"""

import copy
from enum import Enum, auto
from itertools import accumulate
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from dsv3_plugin.distributed.zigzag import Zigzag, taken
from dsv3_plugin.recipe.context import head_groups


class PackMask(Enum):
    """TE's mask of packed samples whose last query stands at the last key; upstream names none."""

    padding_causal_bottom_right = auto()


def group_attention(core: type) -> type:
    """The class of a group's attention.

    Args:
        core: upstream's TEDotProductAttention, which can be a base only where TE is.
    """

    class GroupAttention(core):
        def __init__(self, config: TransformerConfig, *args: Any, **named: Any) -> None:
            groups = head_groups(
                config.num_attention_heads // config.tensor_model_parallel_size,
                config.context_parallel_size,
            )
            of_group = copy.copy(config)
            of_group.context_parallel_size = 1
            of_group.num_attention_heads = config.num_attention_heads // groups
            of_group.num_query_groups = of_group.num_attention_heads
            super().__init__(of_group, *args, **named)

        def attend_to_packs(
            self, query: Tensor, key: Tensor, value: Tensor, zigzag: Zigzag
        ) -> tuple[Tensor, ...]:
            """Every sample's first chunk in one call, every second one in another.

            Args:
                query: [t / N, 1, heads, d].
                key, value: [t, 1, heads, d]: in packs TE wants both of one width.
                zigzag: where the tokens stand.

            Returns:
                Chunk by chunk, [own, 1, heads · d].
            """
            outs: list[tuple[Tensor, ...]] = []
            for chunks in (zigzag.halves[0::2], zigzag.halves[1::2]):
                own = [mine for mine, _ in chunks]
                packed = _prefixes(chunks, zigzag, query.device)
                out = self._of_width(value.shape[-1])(
                    taken(query, own).squeeze(1),
                    key.squeeze(1),
                    value.squeeze(1),
                    None,
                    PackMask.padding_causal_bottom_right,
                    packed_seq_params=packed,
                )
                outs.append(out.split([mine.stop - mine.start for mine in own]))
            return tuple(piece.unsqueeze(1) for both in zip(*outs, strict=True) for piece in both)

        def _of_width(self, width: int) -> Any:
            """Itself, for values of another width than was said when it was made."""
            self.hidden_size_per_attention_head_v = width
            return self

    return GroupAttention


def _prefixes(
    chunks: list[tuple[slice, slice]], zigzag: Zigzag, device: torch.device
) -> PackedSeqParams:
    """Queries that follow each other, and of each sample the keys from its beginning on."""

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    queries = [own.stop - own.start for own, _ in chunks]
    keys = [seen.stop - seen.start for _, seen in chunks]
    ends = tensor([0, *accumulate(queries)])
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=ends,
        cu_seqlens_q_padded=ends,
        cu_seqlens_kv=tensor([0, *accumulate(keys)]),
        cu_seqlens_kv_padded=tensor([*(seen.start for _, seen in chunks), zigzag.tokens]),
        max_seqlen_q=max(queries),
        max_seqlen_kv=max(keys),
    )
