"""Multi-head latent attention: upstream's, with what the family needs and upstream's lacks.

Latents normed with eps 1e-6 (upstream uses `layernorm_epsilon`), models without a Q latent
(upstream insists on a fused norm there), weight gradients that can wait, rotation and assembly of
queries and keys in one pass, gradients of all heads under tensor parallelism for what they share,
and context parallelism for which latents travel (`latent_context.py`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import (
    checkpoint,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput
from megatron.core.transformer.multi_latent_attention import (
    MLASelfAttention,
    MLASelfAttentionSubmodules,
)
from torch import Tensor

from dsv3_plugin.distributed.packs import Packs
from dsv3_plugin.distributed.zigzag import Zigzag, taken
from dsv3_plugin.errors import UserError
from dsv3_plugin.model.latent_context import (
    GatherLatents,
    KeysValues,
    Together,
    UpProjection,
    attend_to_prefixes,
    attends_to_packs,
    kept_in_pieces,
    zigzag_of,
)
from dsv3_plugin.model.linear import ColumnLinear, WeightGradients
from dsv3_plugin.model.rotary import Assemble, RotateKey, RotateQueries
from dsv3_plugin.recipe.context import head_groups
from dsv3_plugin.recipe.model import LATENT_NORM_EPSILON


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
        if self._every_rank_has_all_tokens and hasattr(self, "q_layernorm"):
            # Upstream sums its gradient over tensor-parallel ranks whatever each of them has.
            for weight in self.q_layernorm.parameters():
                weight.average_gradients_across_tp_domain = True
        divided, up = self.pg_collection.cp.size() > 1, self.linear_kv_up_proj
        if divided and not hasattr(up, "weight_gradients"):
            # TE's, whose rows are multiplied by us; its hooks take gradients that may wait.
            up.weight_gradients = WeightGradients(hooks=up.wgrad_accumulation_and_reduce_hooks)

    @property
    def _every_rank_has_all_tokens(self) -> bool:
        """Tensor parallelism without sequence parallelism."""
        return self.pg_collection.tp.size() > 1 and not self.config.sequence_parallel

    def _backward_kv_proj(self) -> None:
        """Owed weight gradients, as upstream's plan of layers asks for them."""
        if self.pg_collection.cp.size() == 1:
            super()._backward_kv_proj()
        else:
            self.linear_kv_up_proj.weight_gradients.pay_oldest()
            self.linear_kv_down_proj.backward_dw()

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

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        packed_seq_params: PackedSeqParams | None = None,
        **given: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Upstream's forward; with context parallelism of this rank's chunks, [s / N, b, h]."""
        if self.pg_collection.cp.size() == 1:
            return super().forward(
                hidden_states, attention_mask, packed_seq_params=packed_seq_params, **given
            )
        if attention_mask is not None or any(value is not None for value in given.values()):
            raise UserError(
                "Context parallelism divides causal sequences in training and evaluation: with an "
                "attention mask or a cache set context_parallel_size to 1."
            )
        return self._forward_in_context(hidden_states, packed_seq_params)

    def _forward_in_context(
        self, hidden_states: Tensor, packed: PackedSeqParams | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of this rank's tokens to all before them in their sequence."""
        group = self.pg_collection.cp
        q_latent, kv_latent, k_rotary = self._normed_latents(hidden_states)
        zigzag = zigzag_of(len(k_rotary), group, packed)
        up = self._up_projection(zigzag)
        cos, sin = self._rotation_of(zigzag, k_rotary.dtype)
        mine = torch.cat([kv_latent, RotateKey.apply(k_rotary, cos, sin)], dim=-1)

        def project(
            q_latent: Tensor, mine: Tensor, cos: Tensor, sin: Tensor
        ) -> tuple[Tensor, Tensor]:
            query = self._queries_by_group(up.groups, q_latent, cos, sin)
            return query, GatherLatents.apply(mine, zigzag, group)

        if self.recompute_up_proj:
            again = CheckpointWithoutOutput(fp8=self.config.fp8 or None)
            query, latents = again.checkpoint(project, q_latent, mine, cos, sin)
        else:
            query, latents = project(q_latent, mine, cos, sin)
        every, pieces = KeysValues(latents, up), []
        for number, of_group in enumerate(query.unbind()):
            key, value = every.of_group(number)
            with every.dropped_until_backward(number, key, value):
                pieces += self._attend_group(of_group, key, value, zigzag)
        out = Together.apply(up.groups, *pieces)
        if self.recompute_up_proj:
            again.discard_output_and_register_recompute(out)
        if self.checkpoint_core_attention:  # which keeps nothing of what it gives
            return self.linear_proj(out)
        with kept_in_pieces(out, up.groups, pieces):
            return self.linear_proj(out)

    def _attend_group(
        self, query: Tensor, key: Tensor, value: Tensor, zigzag: Zigzag
    ) -> tuple[Tensor, ...]:
        """Attention of a group of heads, chunk by chunk, [own, b, heads · d of values]."""

        def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
            outs = attend_to_prefixes(self.core_attention, query, key, value, zigzag)
            if value.shape[-1] == self.config.v_head_dim:
                return outs
            heads = (out.unflatten(-1, value.shape[2:]) for out in outs)
            return tuple(out[..., : self.config.v_head_dim].flatten(2) for out in heads)

        if self.checkpoint_core_attention and self.training:
            return checkpoint(attend, False, query, key, value)
        return attend(query, key, value)

    def _normed_latents(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of this rank's tokens the Q latent, and what all heads make keys and values of.

        Under tensor parallelism the latter is whole on every rank, whose heads add to its gradient.
        """
        config, tensor = self.config, self.pg_collection.tp
        q_latent, kv = self._qkv_down_projection(hidden_states)
        if config.q_lora_rank is not None:
            q_latent = self.q_layernorm(q_latent)
        kv_latent, k_rotary = kv.split(self._kv_widths, dim=-1)
        kv_latent = self.kv_layernorm(kv_latent)
        if self._every_rank_has_all_tokens:
            kv_latent = copy_to_tensor_model_parallel_region(kv_latent, group=tensor)
        elif tensor.size() > 1:
            kv_latent = gather_from_sequence_parallel_region(kv_latent, group=tensor)
            k_rotary = gather_from_sequence_parallel_region(k_rotary, group=tensor)
        return q_latent, kv_latent, k_rotary

    @property
    def _kv_widths(self) -> list[int]:
        """Of the KV latent, and of the rotated key that all heads share."""
        return [self.config.kv_lora_rank, self.config.qk_pos_emb_head_dim]

    def _qkv_down_projection(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Upstream's Q latent, and what keys and values are made of in its whole width.

        Upstream divides that among tensor-parallel ranks where its layers are plain torch, and puts
        it together where gradients are no longer summed: the rotated key, which all heads share,
        has the gradient of a rank's own heads then. Without sequence parallelism that is so in
        Transformer Engine's layers too.

        Returns:
            [s, b, q_lora_rank] (or the hidden states), [s, b, kv_lora_rank + rotary]; with sequence
            parallelism of this rank's tokens.
        """
        q_latent, kv = super()._qkv_down_projection(hidden_states)
        if kv.shape[-1] != sum(self._kv_widths):
            kv = gather_from_tensor_model_parallel_region(kv)
            if self.config.sequence_parallel:
                kv = scatter_to_sequence_parallel_region(kv)
        if self._every_rank_has_all_tokens:
            kv_latent, k_rotary = kv.split(self._kv_widths, dim=-1)
            k_rotary = copy_to_tensor_model_parallel_region(k_rotary, group=self.pg_collection.tp)
            kv = torch.cat([kv_latent, k_rotary], dim=-1)
        return q_latent, kv

    def _queries_by_group(self, groups: int, q_latent: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotated queries, [groups, s / N, b, heads of a group, d]."""
        latent = self.config.q_lora_rank is not None
        q, _ = (self.linear_q_up_proj if latent else self.linear_q_proj)(q_latent)
        q = q.unflatten(-1, (self.num_attention_heads_per_partition, -1))
        return RotateQueries.apply(q, cos, sin, self.config.qk_head_dim, groups)

    def _up_projection(self, zigzag: Zigzag) -> UpProjection:
        """How keys and values are made of latents."""
        config, linear = self.config, self.linear_kv_up_proj
        wide = attends_to_packs(self.core_attention, zigzag)
        return UpProjection(
            weight=linear.weight,
            gradients=linear.weight_gradients,
            groups=head_groups(self.num_attention_heads_per_partition, zigzag.size),
            latent=config.kv_lora_rank,
            plain=config.qk_head_dim,
            head=config.qk_head_dim + config.v_head_dim,
            value=self.q_head_dim if wide else config.v_head_dim,
        )

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
            query, key: [s, b, heads, d]; value: [s, b, heads, d of values]; without b for packed
            samples. Then the normed Q latent (or the hidden states) and the normed KV latent, as
            upstream returns them.
        """
        packed = isinstance(packed_seq_params, Packs)
        special = None if packed else packed_seq_params
        # Upstream asks the device of each layer where samples end, and waits; here the host knows.
        if (hidden_states.is_cuda and not packed) or not self._is_plain(
            special, inference_context, kwargs
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
        kv_latent, k_rotary = kv.split(self._kv_widths, dim=-1)
        kv_latent = self.kv_layernorm(kv_latent)
        if config.q_lora_rank is not None:
            q_latent = self.q_layernorm(q_latent)
        if packed:
            rotation = self._rotation_of_samples(packed_seq_params.sample_lengths, kv.dtype)
        else:
            rotation = self.rotation(len(hidden_states), kv.dtype)
        inputs = q_latent, kv_latent, k_rotary, *rotation
        if self.recompute_up_proj:
            # Upstream's forward drops what comes out after the core has used it.
            self.qkv_up_checkpoint = CheckpointWithoutOutput(fp8=config.fp8 or None)
            query, key, value = self.qkv_up_checkpoint.checkpoint(self._up_project, *inputs)
        else:
            query, key, value = self._up_project(*inputs)
        if packed:
            query, key, value = (each.squeeze(1) for each in (query, key, value))
        return query, key, value, q_latent, kv_latent

    def _up_project(
        self, q_latent: Tensor, kv_latent: Tensor, k_rotary: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From latents to whole heads: query, key and value."""
        latent = self.config.q_lora_rank is not None
        q, _ = (self.linear_q_up_proj if latent else self.linear_q_proj)(q_latent)
        kv, _ = self.linear_kv_up_proj(kv_latent)
        heads = (self.num_attention_heads_per_partition, -1)
        return Assemble.apply(
            q.unflatten(-1, heads),
            kv.unflatten(-1, heads),
            k_rotary,
            cos,
            sin,
            self.config.qk_head_dim,
        )

    def _is_plain(self, *special: Any) -> bool:
        """Whether our own way says all: nothing split or cached."""
        return (
            not any(special)  # samples packed otherwise, a cache, deprecated names
            and self.pg_collection.tp.size() == 1
            and self.pg_collection.cp.size() == 1
            and not self.config.apply_rope_fusion
            and not self.cache_mla_latents
        )

    def rotation(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of each position and pair, [s, 1, 1, d / 2], YaRN's factor included."""
        return self._turned(self.rotary_pos_emb(length), None, dtype)

    def _rotation_of_samples(
        self, lengths: Sequence[int], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The same of samples that lie one after the other, each from its own first position."""
        # `packed_seq` has upstream give all positions, and not cut them by ranks itself.
        table = self.rotary_pos_emb(max(lengths), packed_seq=True)
        return self._turned(table, [slice(0, length) for length in lengths], dtype)

    def _rotation_of(self, zigzag: Zigzag, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The same of this rank's tokens, each at its position in its whole sample."""
        # `packed_seq` has upstream give all positions, and not cut them by ranks itself.
        table = self.rotary_pos_emb(max(zigzag.lengths), packed_seq=True)
        return self._turned(table, zigzag.positions, dtype)

    def _turned(
        self, table: Any, positions: list[slice] | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        angles, factor = table if self.config.rope_type == "yarn" else (table, 1.0)
        angles = angles[..., : angles.shape[-1] // 2]
        if positions is not None:
            angles = taken(angles, positions)
        return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)
