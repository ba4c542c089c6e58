"""A model to be cut into pipeline stages, and the step that schedules call on it.

15K parameters a layer, every feature of DeepSeek-V3.
"""

from collections.abc import Iterator
from typing import Any

import torch

from dsv3_plugin.recipe.model import ModelConfig


def staged_model(layers: int) -> ModelConfig:
    """One dense layer, `layers` - 1 with experts, one that predicts a token further."""
    return ModelConfig.model_validate(
        {
            "name": f"{layers} layers",
            "num_layers": layers,
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "vocab_size": 64,
            "max_position_embeddings": 32,
            "num_attention_heads": 2,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_head_dim": 8,
            "qk_pos_emb_head_dim": 8,
            "v_head_dim": 8,
            "moe_layer_freq": f"[0]*1+[1]*{layers - 1}",
            "num_moe_experts": 8,
            "moe_ffn_hidden_size": 16,
            "moe_shared_expert_intermediate_size": 16,
            "moe_router_topk": 2,
            "moe_router_num_groups": 4,
            "moe_router_group_topk": 2,
            "moe_router_score_function": "sigmoid",
            "moe_router_topk_scaling_factor": 2.5,
            "moe_router_enable_expert_bias": True,
            "moe_aux_loss_coeff": 1e-2,
            "moe_router_load_balancing_type": "seq_aux_loss",
            "mtp_num_layers": 1,
        }
    )


def forward_step(iterator: Iterator[Any], model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
    """What upstream's schedules call: only the stages at the ends read a batch."""
    from megatron.core import parallel_state
    from megatron.core.utils import get_attr_wrapped_model

    parts = ("pre_process", "post_process", "mtp_process")
    reads = any(get_attr_wrapped_model(model, part) for part in parts)
    batch = next(iterator) if reads else dict.fromkeys(("tokens", "labels", "positions"))
    output = model(
        batch["tokens"],
        batch["positions"],
        None,
        labels=batch["labels"],
        padding_mask=batch.get("padding"),
    )

    def loss(losses: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        context = parallel_state.get_context_parallel_group()
        share = losses.mean() / context.size()  # upstream multiplies by their number
        mean = share.detach().clone()
        if context.size() > 1:
            torch.distributed.all_reduce(mean, group=context)
        return share, {
            "lm loss": mean,
            "token losses": losses.detach().clone(),  # [b, s]
        }

    return output, loss
