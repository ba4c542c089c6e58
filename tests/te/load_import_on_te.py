"""Loads an imported checkpoint into upstream's own Transformer Engine model, strictly.

    python load_import_on_te.py CHECKPOINT

Run in a process of its own, because it pretends to have a GPU. Nothing is computed: the model is
built on the meta device by upstream's spec, given memory on the CPU and loaded as upstream's
`load_checkpoint` does, `_extra_state` objects included. Prints one JSON object: whether every
tensor has the values of the checkpoint.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed
from full_size_on_meta import META, pretend_gpu


def main(directory: Path) -> None:
    """Load, compare and print."""
    pretend_gpu()
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import (
        get_gpt_decoder_block_spec,
        get_gpt_mtp_block_spec,
    )

    from dsv3_plugin.checkpoint import iter_hf_tensors
    from dsv3_plugin.checkpoint.conversion.weights import open_weights
    from dsv3_plugin.model.config import transformer_config

    parallel_state.initialize_model_parallel()
    weights = open_weights(directory)
    config = transformer_config(
        weights.model,
        backend="transformer_engine",
        dtype=torch.float32,
        perform_initialization=False,
        init_model_with_meta_device=True,
        moe_permute_fusion=False,
    )
    with META:
        layers = get_gpt_decoder_block_spec(config, use_transformer_engine=True)
        model = GPTModel(
            config=config,
            transformer_layer_spec=layers,
            mtp_block_spec=get_gpt_mtp_block_spec(config, layers, use_transformer_engine=True),
            vocab_size=weights.model.vocab_size,
            max_sequence_length=weights.model.max_position_embeddings,
            share_embeddings_and_output_weights=weights.model.share_embeddings_and_output_weights,
            position_embedding_type="rope",
        )
    model.to_empty(device="cpu")
    torch.cuda.is_available = lambda: False  # loading looks for the device the tensors are on
    state = dist_checkpointing.load(
        model.sharded_state_dict(metadata={}), str(weights.checkpoint.path)
    )
    own = {name: value for name, value in state.items() if "." in name}
    model.load_state_dict(own, strict=True)
    same = {
        name: torch.equal(tensor, weights.rows(name, 0, tensor.shape[0]).float())
        for name, tensor in iter_hf_tensors(model, weights.model)
    }
    print(json.dumps({"tensors": len(same), "different": [n for n, ok in same.items() if not ok]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
