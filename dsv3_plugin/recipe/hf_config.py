"""A Hugging Face `config.json` of the DeepSeek-V2/V3 family, read and written.

`model_from_hf` and `hf_config` are inverses: what one reads, the other writes. The key spellings
are those of the published configs, which transformers 4 and 5, vLLM and SGLang all read
(`rope_theta` and `rope_scaling` rather than transformers 5's own `rope_parameters`; both forms are
read). A config that says something this family's code, or ours, would silently ignore is refused,
and the sentence names the key.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.validation import validate

_FAMILIES = {"deepseek_v2": "softmax", "deepseek_v3": "sigmoid", "kimi_k2": "sigmoid"}
"""`model_type` → how the family scores experts."""

_SAME = {
    "hidden_size": "hidden_size",
    "vocab_size": "vocab_size",
    "num_hidden_layers": "num_layers",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "q_lora_rank": "q_lora_rank",
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_head_dim",
    "qk_rope_head_dim": "qk_pos_emb_head_dim",
    "v_head_dim": "v_head_dim",
    "max_position_embeddings": "max_position_embeddings",
    "n_routed_experts": "num_moe_experts",
    "moe_intermediate_size": "moe_ffn_hidden_size",
    "num_experts_per_tok": "moe_router_topk",
}
"""Keys that mean the same on both sides: Hugging Face → ModelConfig."""

_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "moe_layer_freq": 1,
    "rope_interleave": True,
}
"""Keys with one value that we compute; absent means that value."""


def read_hf_model(path: Path) -> ModelConfig:
    """The model of a `config.json` file, or of the folder that holds one.

    It is named after its folder, as downloaded models are.
    """
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}).") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no JSON object.")
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return model_from_hf(config, name)


def model_from_hf(config: Mapping[str, Any], name: str) -> ModelConfig:
    """The model behind a parsed `config.json`.

    Args:
        config: the JSON object of a deepseek_v2, deepseek_v3 or kimi_k2 model.
        name: the name that the model and error messages carry.

    Raises:
        UserError: a key is missing, or says something we would not compute as written.
    """
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise UserError(
            f"{name}: model_type '{family}' is not of the DeepSeek family "
            f"(known: {', '.join(_FAMILIES)})."
        )
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise UserError(f"{name}: {key} {config[key]!r} is not supported, only {value!r}.")
    for key in [*_SAME, "n_shared_experts", "first_k_dense_replace"]:
        value = config.get(key, 0 if key == "first_k_dense_replace" else None)
        if value is None and key != "q_lora_rank":
            raise UserError(f"{name}: the key '{key}' is missing or null.")
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise UserError(f"{name}: {key} {value!r} is not a whole number.")

    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads")
    if kv_heads not in (None, heads):
        raise UserError(
            f"{name}: num_key_value_heads {kv_heads} differs from num_attention_heads {heads}; "
            "multi-head latent attention has as many of one as of the other."
        )
    dense = min(config.get("first_k_dense_replace", 0), layers)
    has_moe = dense < layers
    fields = {ours: config.get(theirs) for theirs, ours in _SAME.items()}
    fields |= {
        "moe_layer_freq": [0] * dense + [1] * (layers - dense),
        "layernorm_epsilon": _number(config, "rms_norm_eps", 1e-6, name),
        "init_method_std": _number(config, "initializer_range", 0.02, name),
        "share_embeddings_and_output_weights": config.get("tie_word_embeddings", False),
        "moe_shared_expert_intermediate_size": (
            config["n_shared_experts"] * config["moe_intermediate_size"] or None
        ),
        "moe_router_topk_scaling_factor": _number(config, "routed_scaling_factor", 1.0, name),
        "moe_aux_loss_coeff": _number(config, "aux_loss_alpha", 0.0, name),
        "moe_router_load_balancing_type": (
            "seq_aux_loss" if config.get("seq_aux", True) else "aux_loss"
        ),
        # Absent means none: transformers 4 wrote no key for models without the extra layer.
        "mtp_num_layers": config.get("num_nextn_predict_layers", config.get("num_mtp_layers")),
    }
    fields |= _router_from_hf(config, name)
    fields |= _rope_from_hf(config, name)
    if not has_moe:
        fields = {key: value for key, value in fields.items() if not key.startswith("moe_")}
        fields |= {"num_moe_experts": None, "moe_layer_freq": [0] * layers}
    return validate(ModelConfig, {"name": name, **fields}, name)


def _router_from_hf(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Scores, groups and bias; each family's code computes one way and ignores other words."""
    score = _FAMILIES[config["model_type"]]
    said = config.get("scoring_func", score)
    if said != score:
        raise UserError(
            f"{name}: scoring_func '{said}' is not supported with model_type "
            f"'{config['model_type']}', only '{score}'."
        )
    methods = {
        "sigmoid": ["noaux_tc"],
        "softmax": ["greedy", "group_limited_greedy"],
    }[score]
    method = config.get("topk_method", methods[0])
    if method not in methods:
        raise UserError(
            f"{name}: topk_method '{method}' is not supported with scoring_func '{score}', "
            f"only {' and '.join(methods)}."
        )
    normalised = score == "sigmoid" and config["num_experts_per_tok"] > 1
    said_normalised = bool(config.get("norm_topk_prob", normalised))
    if said_normalised != normalised:
        raise UserError(
            f"{name}: norm_topk_prob {str(said_normalised).lower()} is not supported with "
            f"scoring_func '{score}' and {config['num_experts_per_tok']} experts per token."
        )
    grouped = method != "greedy"
    if grouped and None in (config.get("n_group"), config.get("topk_group")):
        if method == "group_limited_greedy":
            raise UserError(f"{name}: topk_method '{method}' needs n_group and topk_group.")
        grouped = False
    return {
        "moe_router_score_function": score,
        "moe_router_pre_softmax": score == "softmax",
        "moe_router_enable_expert_bias": score == "sigmoid",
        "moe_router_num_groups": config["n_group"] if grouped else None,
        "moe_router_group_topk": config["topk_group"] if grouped else None,
    }


def _rope_from_hf(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Rotary positions from `rope_theta`/`rope_scaling` or from `rope_parameters`."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(scaling, Mapping):
        raise UserError(f"{name}: rope_scaling {scaling!r} is not an object.")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    theta = _number(config, "rope_theta", 10000.0, name)
    base = _number(scaling, "rope_theta", theta, name)
    if kind == "default":
        return {"rope_type": "rope", "rotary_base": base}
    if kind != "yarn":
        raise UserError(f"{name}: rope type '{kind}' is not supported, only default and yarn.")
    if scaling.get("factor") is None:
        raise UserError(f"{name}: the key 'rope_scaling.factor' is missing or null.")
    if scaling.get("attention_factor") is not None:
        raise UserError(
            f"{name}: rope_scaling.attention_factor is not supported; "
            "use mscale and mscale_all_dim."
        )
    if not scaling.get("truncate", True):
        raise UserError(f"{name}: rope_scaling.truncate false is not supported.")
    # Both absent is plain YaRN: cos and sin grow by 0.1 ln(factor) + 1, the softmax not at all.
    mscale = _number(scaling, "mscale", 1.0, name)
    mscale_all_dim = _number(scaling, "mscale_all_dim", 0.0, name)
    if mscale_all_dim == 0.0 and mscale != 1.0:
        raise UserError(
            f"{name}: rope_scaling.mscale {mscale} without mscale_all_dim means one thing to "
            "DeepSeek's code and another to transformers; give both."
        )
    return {
        "rope_type": "yarn",
        "rotary_base": base,
        "rotary_scaling_factor": _number(scaling, "factor", 1.0, name),
        "original_max_position_embeddings": scaling.get(
            "original_max_position_embeddings", config["max_position_embeddings"]
        ),
        "beta_fast": _number(scaling, "beta_fast", 32.0, name),
        "beta_slow": _number(scaling, "beta_slow", 1.0, name),
        "mscale": mscale,
        "mscale_all_dim": mscale_all_dim,
    }


def _number(config: Mapping[str, Any], key: str, default: float, name: str) -> float:
    """A number of the config; absent and null both mean the default."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{name}: {key} {value!r} is not a number.")
    return float(value)


def hf_config(
    model: ModelConfig,
    *,
    torch_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> dict[str, Any]:
    """The `config.json` with which transformers loads the model, no remote code needed.

    Args:
        model: the model; softmax scores make a deepseek_v2 config, sigmoid scores a deepseek_v3.
        torch_dtype: the type of the stored weights.
        bos_token_id, eos_token_id, pad_token_id: the tokenizer's; None is written as null.

    Raises:
        UserError: the model is one that the Hugging Face classes cannot express.
    """
    family = "deepseek_v3" if model.moe_router_score_function == "sigmoid" else "deepseek_v2"
    _require_expressible(model, family)
    architecture = {"deepseek_v3": "DeepseekV3ForCausalLM", "deepseek_v2": "DeepseekV2ForCausalLM"}
    config = {"architectures": [architecture[family]], "model_type": family}
    config |= {theirs: getattr(model, ours) for theirs, ours in _SAME.items()}
    config |= {
        "num_key_value_heads": model.num_attention_heads,
        "n_shared_experts": (
            model.moe_shared_expert_intermediate_size // model.moe_ffn_hidden_size
        ),
        "first_k_dense_replace": model.moe_layer_freq.count(0),
        "moe_layer_freq": 1,
        "ep_size": 1,
        "routed_scaling_factor": model.moe_router_topk_scaling_factor or 1.0,
        "aux_loss_alpha": model.moe_aux_loss_coeff,
        "seq_aux": model.moe_router_load_balancing_type != "aux_loss",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": model.layernorm_epsilon,
        "initializer_range": model.init_method_std,
        "tie_word_embeddings": model.share_embeddings_and_output_weights,
        "rope_theta": model.rotary_base,
        "rope_scaling": _rope_scaling(model),
        "use_cache": True,
        "pretraining_tp": 1,
        "torch_dtype": torch_dtype,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
    }
    groups, allowed = model.moe_router_num_groups or 1, model.moe_router_group_topk or 1
    config |= {"n_group": groups, "topk_group": allowed}
    if family == "deepseek_v3":
        config |= {
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "norm_topk_prob": model.moe_router_topk > 1,
            # Written even when 0: transformers takes an absent key for 1.
            "num_nextn_predict_layers": model.mtp_num_layers or 0,
        }
    else:
        config |= {
            "scoring_func": "softmax",
            "topk_method": "greedy" if groups == 1 else "group_limited_greedy",
            "norm_topk_prob": False,
        }
    return config


_SPELLED_TWICE = {
    "rope_parameters": ("rope_theta", "rope_scaling"),
    "num_mtp_layers": ("num_nextn_predict_layers",),
}
"""A key of transformers 5's own → the published keys that say the same."""


def brought_up_to_date(config: Mapping[str, Any], model: ModelConfig) -> dict[str, Any]:
    """A parsed `config.json` with what it says of the model replaced where `model` is another.

    All else stays as it is. Two things change always, as the code that a folder may carry does not
    travel with it: `auto_map` goes, and a family that transformers knows by another name gets that.
    """
    updated = {key: value for key, value in config.items() if key != "auto_map"}
    if config["model_type"] not in ("deepseek_v2", "deepseek_v3"):
        updated["model_type"] = "deepseek_v3"
        updated["architectures"] = ["DeepseekV3ForCausalLM"]
    before = model_from_hf(config, model.name)
    if before == model:
        return updated
    old, new = hf_config(before), hf_config(model)
    changed = {key for key in new if new[key] != old.get(key)}
    for key, published in _SPELLED_TWICE.items():
        if key in updated and changed & {*published}:
            del updated[key]
            changed |= {*published}
    return updated | {key: new[key] for key in new if key in changed}


def _rope_scaling(model: ModelConfig) -> dict[str, Any] | None:
    if model.rope_type == "rope":
        return None
    return {
        "type": "yarn",
        "rope_type": "yarn",
        "factor": model.rotary_scaling_factor,
        "original_max_position_embeddings": model.original_max_position_embeddings,
        "beta_fast": model.beta_fast,
        "beta_slow": model.beta_slow,
        "mscale": model.mscale,
        "mscale_all_dim": model.mscale_all_dim,
    }


def _require_expressible(model: ModelConfig, family: str) -> None:
    """Refuse what the Hugging Face classes would compute differently, or not at all."""

    def refuse(reason: str) -> None:
        raise UserError(f"{model.name} has no Hugging Face {family} form: {reason}.")

    if not model.moe_layers:
        refuse("it has no MoE layer")
    dense = model.moe_layer_freq.count(0)
    if any(model.moe_layer_freq[:dense]):
        refuse("its dense layers do not all come first")
    if model.moe_shared_expert_intermediate_size is None:
        refuse("it has no shared expert")
    if model.mscale != 1.0 and model.mscale_all_dim == 0.0:
        refuse("mscale without mscale_all_dim means something else there")
    if family == "deepseek_v3":
        if not model.moe_router_enable_expert_bias:
            refuse("its router has no bias (moe_router_enable_expert_bias)")
    else:
        if not model.moe_router_pre_softmax:
            refuse("its gates are renormalised over the chosen experts (moe_router_pre_softmax)")
        if model.mtp_num_layers:
            refuse("it has multi-token prediction")
        if model.hidden_size % model.num_attention_heads:
            refuse("hidden_size is not a multiple of num_attention_heads")
