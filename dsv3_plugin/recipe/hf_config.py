"""A Hugging Face `config.json` of the DeepSeek-V2/V3 family, read and written.

`model_from_hf` and `hf_config` are inverses: what one reads, the other writes. The key spellings
are those of the published configs, which transformers 4 and 5, vLLM and SGLang all read
(`rope_theta` and `rope_scaling` rather than transformers 5's own `rope_parameters`; both forms are
read). A config that says something this family's code, or ours, would silently ignore is refused,
and the sentence names the key.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dsv3_plugin.errors import UserError
from dsv3_plugin.files import json_text
from dsv3_plugin.recipe.families import FAMILIES, Family, family_of
from dsv3_plugin.recipe.fields import FIELDS, ROPE_SCALING, without_experts
from dsv3_plugin.recipe.model import ModelConfig, format_layer_pattern
from dsv3_plugin.recipe.validation import validate
from dsv3_plugin.recipe.yaml_text import quoted

_COMPUTED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "moe_layer_freq": 1,
}
"""Keys with one value that we compute; absent means that value."""

_ASSUMED = {"mlp_bias": False, "rope_interleave": True}
"""Likewise, and not written, as DeepSeek's own configs have no such key."""


def read_hf_model(path: Path) -> tuple[ModelConfig, list[str]]:
    """The model of a `config.json` file, or of the folder that holds one, and what was `assumed`.

    It is named after its folder, as downloaded models are.
    """
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json_text.read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}): download it again.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no JSON object, as a model's does: download it again.")
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    model = model_from_hf(config, name, path)
    return model, assumed(config, model)


def model_from_hf(
    config: Mapping[str, Any], name: str, where: str | Path | None = None
) -> ModelConfig:
    """The model behind a parsed `config.json`.

    Args:
        config: the JSON object of a deepseek_v2, deepseek_v3 or kimi_k2 model.
        name: the name that the model carries.
        where: the file, which error messages name; None: they name the model.

    Raises:
        UserError: a key is missing, or says something we would not compute as written.
    """
    known, where = ", ".join(FAMILIES), str(where or name)
    kind = config.get("model_type")
    if kind is None:
        raise UserError(f"{where}: the key 'model_type' is missing or null (known: {known}).")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(
            f"{where}: model_type '{kind}' is not of the DeepSeek family (known: {known}), and no "
            "other is read here: take a model of that family."
        )
    try:
        fields = _fields(published(config), FAMILIES[kind])
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from error
    return validate(ModelConfig, {"name": name, **fields}, where)


def assumed(config: Mapping[str, Any], model: ModelConfig) -> list[str]:
    """What a config leaves out although it matters, and what `model` has there: a sentence each."""
    if published(config).get("aux_loss_alpha") is not None or not model.moe_layers:
        return []
    return [
        f"the config has no aux_loss_alpha: moe_aux_loss_coeff is {model.moe_aux_loss_coeff:g}, "
        "the report's; change it in the model's YAML to train with another."
    ]


def published(config: Mapping[str, Any]) -> dict[str, Any]:
    """A parsed `config.json` in one spelling: that of the published DeepSeek models.

    `rope_scaling` is an object always, empty with plain RoPE, and its kind stands under `type`.

    Raises:
        ValueError: with the sentence; `rope_scaling` is no object.
    """
    config = FAMILIES[config["model_type"]].published(config)
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(scaling, Mapping):
        raise ValueError(f"rope_scaling {quoted(scaling)} is not an object")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if scaling.get("rope_theta") is not None:
        config["rope_theta"] = scaling["rope_theta"]
    config["rope_scaling"] = {} if kind == "default" else {**scaling, "type": kind}
    if "num_nextn_predict_layers" not in config:
        config["num_nextn_predict_layers"] = config.get("num_mtp_layers")
    return config


def _fields(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The fields of `ModelConfig` that a config in its published spelling gives.

    Raises:
        ValueError: with the sentence.
    """
    for key, value in (_COMPUTED | _ASSUMED).items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} {quoted(config[key])} is not supported, only {quoted(value)}")
    fields = {
        field.ours: field.from_hf(config, field.hf_key, family)
        for field in FIELDS
        if field.hf_key is not None and (config["rope_scaling"] or not field.of_yarn)
    }
    heads, kv_heads = fields["num_attention_heads"], config.get("num_key_value_heads")
    if kv_heads not in (None, heads):
        raise ValueError(
            f"num_key_value_heads {kv_heads} differs from num_attention_heads {heads}; "
            "multi-head latent attention has as many of one as of the other: write "
            f"num_key_value_heads {heads}"
        )
    if config["rope_scaling"]:
        _refuse_other_yarn(config["rope_scaling"], fields)
    return fields if any(fields["moe_layer_freq"]) else without_experts(fields)


def _refuse_other_yarn(scaling: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Raise ValueError where YaRN is said in words that not everybody understands alike."""
    if scaling.get("attention_factor") is not None:
        raise ValueError(
            "rope_scaling.attention_factor is not supported; use mscale and mscale_all_dim"
        )
    if not scaling.get("truncate", True):
        raise ValueError("rope_scaling.truncate false is not supported")
    if fields["mscale_all_dim"] == 0.0 and fields["mscale"] != 1.0:
        raise ValueError(
            f"rope_scaling.mscale {fields['mscale']} without mscale_all_dim means one thing to "
            "DeepSeek's code and another to transformers; give both"
        )


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
    family = family_of(model)
    _require_expressible(model, family)
    config: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.form}
    scaling: dict[str, Any] = {}
    for field in FIELDS:
        if field.hf_key is not None and field.hf_key not in family.unknown:
            into = scaling if field.of_yarn else config
            key = field.hf_key.removeprefix(ROPE_SCALING)
            into[key] = field.to_hf(getattr(model, field.ours), model)
    yarn = model.rope_type == "yarn"
    return config | {
        "rope_scaling": scaling | {"rope_type": "yarn"} if yarn else None,
        "num_key_value_heads": model.num_attention_heads,
        **_COMPUTED,
        "ep_size": 1,
        "use_cache": True,
        "pretraining_tp": 1,
        "torch_dtype": torch_dtype,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
    }


def why_not_exported(model: ModelConfig) -> str | None:
    """Why a model has no Hugging Face form, as a sentence; None where it has one."""
    try:
        hf_config(model)
    except UserError as refusal:
        return str(refusal)
    return None


_SPELLED_TWICE = {
    "rope_parameters": ("rope_theta", "rope_scaling"),
    "num_mtp_layers": ("num_nextn_predict_layers",),
}
"""A key of transformers 5's own → the published keys that say the same."""


def brought_up_to_date(config: Mapping[str, Any], model: ModelConfig) -> dict[str, Any]:
    """A parsed `config.json` with what it says of the model replaced where `model` is another.

    All else stays as it is. Two things change always, as the code that a folder may carry does not
    travel with it: `auto_map` goes, and a family that transformers knows by another name gets that
    name, and its spelling.
    """
    family = FAMILIES[config["model_type"]]
    updated = {key: value for key, value in config.items() if key != "auto_map"}
    if config["model_type"] != family.form:
        updated = family.published(updated)
        updated |= {"model_type": family.form, "architectures": [family.architecture]}
    before = model_from_hf(config, model.name)
    if before == model:
        return updated
    old, new = hf_config(before), hf_config(model)
    changed = {key for key in new if new[key] != old.get(key)}
    for key, spellings in _SPELLED_TWICE.items():
        if key in updated and changed & {*spellings}:
            del updated[key]
            changed |= {*spellings}
    return updated | {key: new[key] for key in new if key in changed}


def _require_expressible(model: ModelConfig, family: Family) -> None:
    """Refuse what the Hugging Face classes would compute differently, or not at all."""

    def refuse(reason: str) -> None:
        raise UserError(f"{model.name} has no Hugging Face {family.form} form: {reason}.")

    if not model.moe_layers:
        refuse("it has no MoE layer; moe_layer_freq makes some")
    dense = model.moe_layer_freq.count(0)
    if any(model.moe_layer_freq[:dense]):
        refuse(
            "its dense layers do not all come first; moe_layer_freq: "
            f"{format_layer_pattern(sorted(model.moe_layer_freq))} has as many that do"
        )
    if model.moe_shared_expert_intermediate_size is None:
        refuse(
            "it has no shared expert (n_shared_experts 0); one is "
            f"moe_shared_expert_intermediate_size: {model.moe_ffn_hidden_size}"
        )
    if model.mscale != 1.0 and model.mscale_all_dim == 0.0:
        refuse("mscale without mscale_all_dim means something else there; set both, or mscale: 1")
    if model.mtp_num_layers and "num_nextn_predict_layers" in family.unknown:
        refuse(
            f"it has multi-token prediction (mtp_num_layers: {model.mtp_num_layers}), which there "
            "goes with moe_router_score_function: sigmoid alone; "
            "mtp_num_layers: null leaves it out"
        )
    if family.score_function == "sigmoid":
        if not model.moe_router_enable_expert_bias:
            refuse(
                "its router has no bias; moe_router_enable_expert_bias: true gives it one, which "
                "stays 0 with curves.router_bias_speed: 0"
            )
    else:
        if not model.moe_router_pre_softmax:
            refuse(
                "its gates are renormalised over the chosen experts; moe_router_pre_softmax: true "
                "leaves them as they are"
            )
        if model.hidden_size % model.num_attention_heads:
            refuse(
                f"hidden_size {model.hidden_size} is not a multiple of num_attention_heads "
                f"{model.num_attention_heads}; change one of them"
            )
