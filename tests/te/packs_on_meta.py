"""What Transformer Engine's attention is asked for packed samples, on the meta device.

Run in a process of its own, as `full_size_on_meta.py` is. Prints one JSON object: the arguments of
TE's attention, and the shape of what a layer's attention makes of its answer.
"""

import inspect
import json
from typing import Any
from unittest import mock

import torch
from context_on_meta import few_layers
from full_size_on_meta import META, pretend_gpu

from dsv3_plugin.rehearsal.world import fake_world


def main() -> None:
    """Attend to the samples of a pack, and print what TE heard."""
    pretend_gpu()
    with fake_world(0, 1, 1):
        from megatron.core import parallel_state
        from megatron.core.transformer.enums import AttnMaskType
        from transformer_engine.pytorch import DotProductAttention

        from dsv3_plugin.distributed.packs import packs_of, samples_of

        parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
        model = few_layers(1)
        lengths = (5, 9, 2)
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        padding = torch.zeros(positions.shape, dtype=torch.bool)
        padding[0, -2:] = True
        with mock.patch.object(torch.Tensor, "to", lambda tensor, *_, **__: tensor):
            packs = packs_of(samples_of(positions, padding, (~padding).float()))
        heard: dict[str, Any] = {}
        takes = inspect.signature(DotProductAttention.forward)

        def forward(self: Any, *given: Any, **named: Any) -> torch.Tensor:
            heard.update(takes.bind(self, *given, **named).arguments)
            query, value = heard["query_layer"], heard["value_layer"]
            return query.new_empty(query.shape[0], query.shape[1] * value.shape[-1])

        attention = model.decoder.layers[0].self_attention
        query, key, value = (torch.empty(sum(lengths), 128, 192, device=META) for _ in range(3))
        with mock.patch.object(DotProductAttention, "forward", forward):
            out = attention.core_attention(
                query, key, value, None, AttnMaskType.causal, packed_seq_params=packs
            )
    said = {
        name: value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in heard.items()
        if name.startswith(("cu_seqlens", "max_seqlen")) or name in ("qkv_format", "attn_mask_type")
    }
    print(json.dumps(said | {"out": [*out.shape]}))


if __name__ == "__main__":
    main()
