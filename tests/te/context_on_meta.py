"""Builds layers of DeepSeek-V3 on the meta device with TE's layers, a sequence divided over ranks.

Run in a process of its own, as `full_size_on_meta.py` is. Prints one JSON object, by number of
ranks that share a sequence: the shape of every tensor by its key, and how each attention of a
group of heads was made.
"""

import json

import torch
from full_size_on_meta import META, flat, pretend_gpu

from dsv3_plugin.rehearsal.world import fake_world


def main() -> None:
    """Build the model as each of two divisions has it, and print what it holds."""
    pretend_gpu()
    with fake_world(0, 8, 8):
        from megatron.core import parallel_state
        from transformer_engine.pytorch.constants import AttnMaskTypes

        answer: dict[str, object] = {"masks": sorted(AttnMaskTypes)}
        for context in (1, 8):
            parallel_state.initialize_model_parallel(
                context_parallel_size=context, create_gloo_process_groups=False
            )
            answer[str(context)] = built(context)
            parallel_state.destroy_model_parallel()
    print(json.dumps(answer))


def few_layers(context: int) -> torch.nn.Module:
    """A dense layer, an MoE layer and multi-token prediction, for so many ranks of a sequence."""
    from dsv3_plugin.model.build import build_model
    from dsv3_plugin.recipe.load import load_model

    # Plain positions: tables of cosines, which YaRN makes beforehand, would be on a GPU.
    few = {"num_layers": 2, "moe_layer_freq": [0, 1], "rope_type": "rope"}
    with META:
        return build_model(
            load_model("deepseek-v3").model_copy(update=few),
            backend="transformer_engine",
            dtype=torch.bfloat16,
            context_parallel_size=context,
            perform_initialization=False,
            init_model_with_meta_device=True,
            moe_permute_fusion=False,
        )


def built(context: int) -> dict[str, object]:
    """What they hold."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
    from transformer_engine.pytorch import DotProductAttention

    model = few_layers(context)
    tensors = model.sharded_state_dict()
    apply_factories(tensors)
    shapes = {
        tensor.key: tensor.global_shape
        for tensor in flat(tensors)
        if isinstance(tensor, ShardedTensor)
    }
    attention = [
        [type(core).__name__, core.config.num_attention_heads, core.cp_group is None]
        for core in model.modules()
        if isinstance(core, DotProductAttention)
    ]
    return {"shapes": shapes, "attention": attention}


if __name__ == "__main__":
    main()
