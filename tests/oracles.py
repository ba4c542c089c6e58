"""Third parties that compute the same model: what our numbers are held against.

transformers' DeepSeek classes and its `MtpModel`, built from a `ModelConfig` with random weights
far from their initial values (norm weights away from one, router biases away from zero), and their
tensors put under the names of our local backend.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
)
from transformers.modeling_layers import MtpModel
from transformers.modeling_utils import PreTrainedModel

from dsv3_plugin.recipe.hf_config import hf_config
from dsv3_plugin.recipe.model import ModelConfig

_CLASSES = {
    "deepseek_v2": (DeepseekV2Config, DeepseekV2ForCausalLM),
    "deepseek_v3": (DeepseekV3Config, DeepseekV3ForCausalLM),
}


def model_config(**changes: Any) -> ModelConfig:
    """A V3 of a few thousand parameters with every feature, changed as asked."""
    base: dict[str, Any] = {
        "name": "small",
        "num_layers": 3,
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "vocab_size": 96,
        "max_position_embeddings": 64,
        "num_attention_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_head_dim": 12,
        "qk_pos_emb_head_dim": 8,
        "v_head_dim": 10,
        "moe_layer_freq": "[0]*1+[1]*2",
        "num_moe_experts": 16,
        "moe_ffn_hidden_size": 20,
        "moe_shared_expert_intermediate_size": 40,
        "moe_router_topk": 4,
        "moe_router_num_groups": 4,
        "moe_router_group_topk": 2,
        "moe_router_score_function": "sigmoid",
        "moe_router_topk_scaling_factor": 2.5,
        "moe_router_enable_expert_bias": True,
    }
    return ModelConfig.model_validate(base | changes)


def causal_lm(model: ModelConfig, seed: int = 0) -> PreTrainedModel:
    """transformers' model of that configuration, FP32, evaluation mode, random weights."""
    config = hf_config(model)
    config_class, model_class = _CLASSES[config["model_type"]]
    built = model_class(config_class.from_dict(config)).eval().float()
    randomize(built, seed)
    return built


def mtp_model(main: PreTrainedModel, depth: int, seed: int = 1) -> MtpModel:
    """transformers' multi-token prediction layers on top of `main`, random weights of their own."""
    main.config.num_mtp_layers = depth
    built = MtpModel(main, depth).eval().float()
    randomize(built.layers, seed)
    return built


@torch.no_grad()
def randomize(module: torch.nn.Module, seed: int) -> None:
    """Draw every weight, norm and router bias away from where initialisation leaves it."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in tensors.items():
        if "inv_freq" in name:
            continue
        noise = torch.randn(tensor.shape, generator=draw)
        if "norm" in name:
            tensor.copy_(1 + 0.3 * noise)
        elif "e_score_correction_bias" in name:
            tensor.copy_(0.2 * noise)
        else:
            tensor.copy_(noise / tensor.shape[-1] ** 0.5)


_ATTENTION = {
    "q_proj": "linear_q_proj",
    "q_a_proj": "linear_q_down_proj",
    "q_a_layernorm": "q_layernorm",
    "q_b_proj": "linear_q_up_proj",
    "kv_a_proj_with_mqa": "linear_kv_down_proj",
    "kv_a_layernorm": "kv_layernorm",
    "kv_b_proj": "linear_kv_up_proj",
    "o_proj": "linear_proj",
}


def as_ours(tensors: Mapping[str, Tensor | None], mtp: bool = False) -> dict[str, Tensor]:
    """Tensors of a transformers model (weights or gradients) under our local backend's names.

    Args:
        tensors: by transformers' in-memory names (its experts are stacked there, like ours).
        mtp: the names are those of an `MtpModel`.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor is not None and (renamed := _mtp_name(name) if mtp else _main_name(name)):
            ours[renamed] = tensor
    for name in [n for n in ours if n.endswith("gate_proj.weight")]:
        up = name.replace("gate_proj", "up_proj")
        fc1 = name.replace("gate_proj", "linear_fc1")
        ours[fc1] = torch.cat([ours.pop(name), ours.pop(up)])
    return ours


def _main_name(name: str) -> str | None:
    fixed = {
        "model.embed_tokens.weight": "embedding.word_embeddings.weight",
        "model.norm.weight": "decoder.final_layernorm.weight",
        "lm_head.weight": "output_layer.weight",
    }
    if name in fixed:
        return fixed[name]
    if not name.startswith("model.layers."):
        return None  # rotary frequencies
    _, _, layer, rest = name.split(".", 3)
    return f"decoder.layers.{layer}.{_layer_name(rest)}"


def _mtp_name(name: str) -> str | None:
    if not name.startswith("layers."):
        return None  # embedding and head, shared with the main model
    _, layer, rest = name.split(".", 2)
    rest = rest.replace("post_norm", "final_layernorm")
    if rest.startswith("mtp_block."):
        rest = "mtp_model_layer." + _layer_name(rest.removeprefix("mtp_block."))
    return f"mtp.layers.{layer}.{rest}"


def _layer_name(rest: str) -> str:
    part, _, tail = rest.partition(".")
    if part == "post_attention_layernorm":
        return f"pre_mlp_layernorm.{tail}"
    if part == "self_attn":
        linear, _, kind = tail.partition(".")
        return f"self_attention.{_ATTENTION[linear]}.{kind}"
    if part == "mlp":
        tail = tail.replace("gate.weight", "router.weight")
        tail = tail.replace("gate.e_score_correction_bias", "router.expert_bias")
        tail = tail.replace("experts.gate_up_proj", "experts.weight1")
        if not tail.startswith(("shared_experts", "gate_proj", "up_proj", "down_proj")):
            tail = tail.replace("experts.down_proj", "experts.weight2")
        return f"mlp.{tail.replace('down_proj.weight', 'linear_fc2.weight')}"
    return rest


def load_weights(ours: torch.nn.Module, main: PreTrainedModel, mtp: MtpModel | None = None) -> None:
    """Copy transformers' weights into our model; every parameter of ours must be covered."""
    weights = as_ours(main.state_dict())
    if mtp is not None:
        weights |= as_ours(mtp.state_dict(), mtp=True)
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("_extra_state")]
    assert not missing, f"not set: {missing}"
    assert not unexpected, f"no place for: {unexpected}"


@torch.no_grad()
def logits(main: PreTrainedModel, tokens: Tensor) -> Tensor:
    """[b, s, vocab] of token ids [b, s]."""
    return main(tokens, use_cache=False).logits


def mtp_logits(main: PreTrainedModel, mtp: MtpModel, tokens: Tensor) -> Tensor:
    """[b, s, depth, vocab]: at depth d, position t predicts token t + 2 + d.

    The tokens a layer looks ahead to are those of the text, with 0 past its end (where transformers
    would put its own draft and upstream puts 0).
    """
    hidden = main.model(tokens, use_cache=False).last_hidden_state
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    ahead, depths = tokens, []
    for layer in range(len(mtp.layers)):
        ahead = torch.nn.functional.pad(ahead[:, 1:], (0, 1))
        hidden = mtp.forward_layer(layer, hidden, positions, None, input_ids=ahead)
        depths.append(mtp.shared_head(hidden))
    return torch.stack(depths, dim=2)
