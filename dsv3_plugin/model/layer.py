"""Upstream's transformer layer, which tells its router the samples of a pack."""

from typing import Any

from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from dsv3_plugin.distributed.packs import Packs
from dsv3_plugin.model.config import moe_pattern


class DeepSeekLayer(TransformerLayer):
    """Upstream's layer; same parameters, same keys."""

    def _maybe_unflatten_for_moe(
        self, hidden_states: Tensor, padding_mask: Any, packed_seq_params: Any
    ) -> tuple[Tensor, Any, int | None]:
        """What the MoE layer is given; upstream asks here before it is called."""
        if not (self.is_moe_layer and isinstance(packed_seq_params, Packs)):
            return super()._maybe_unflatten_for_moe(hidden_states, padding_mask, packed_seq_params)
        return hidden_states, self.samples_of(packed_seq_params), None

    def samples_of(self, packs: Packs) -> Any:
        """The samples of the tokens that come to this layer."""
        group = self.pg_collection.tp
        divided = self.config.sequence_parallel
        of_mtp = self.is_mtp_layer
        return packs.routed(
            None if of_mtp else sum(moe_pattern(self.config)[: self.layer_number - 1]),
            self.layer_number if of_mtp else 0,
            part=group.rank() if divided else 0,
            parts=group.size() if divided else 1,
        )
