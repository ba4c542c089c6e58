"""One row per field of `ModelConfig`: what Hugging Face and Megatron call it, and how they say it.

Everybody who reads or writes a model in somebody else's terms does it by these rows: `config.json`
(`hf_config`), Megatron's command line (`arguments`), its configuration (`model.config`), the
arguments in its checkpoints (`checkpoint.formats.model_file`) and a live model
(`checkpoint.live_model`). A row that says nothing more has the same value everywhere.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dsv3_plugin.recipe import hf_values as hf
from dsv3_plugin.recipe.model import ModelConfig, format_layer_pattern

ROPE_SCALING = "rope_scaling."


@dataclass(frozen=True)
class Field:
    """A field of `ModelConfig` in the terms of others.

    Attributes:
        ours: its name.
        hf_key: in a `config.json`, dotted inside `rope_scaling`; None: not in there.
        from_hf: (config, key, family) → our value. Raises ValueError with the sentence.
        to_hf: (value, model) → what is written under the key.
        flag: Megatron's, without its dashes; None: there is none.
        to_flag: (value, model) → what is written behind the flag; True: nothing; None, False: the
            flag is left out. Raises ValueError with the sentence.
        attribute: of Megatron's `MLATransformerConfig`; None: not in there.
        to_attribute: (value, model) → what it is set to.
        from_megatron: value of a saved argument or an attribute → ours.
    """

    ours: str
    hf_key: str | None
    from_hf: hf.Reader
    to_hf: hf.Writer
    flag: str | None
    to_flag: Callable[[Any, ModelConfig], Any]
    attribute: str | None
    to_attribute: Callable[[Any, ModelConfig], Any]
    from_megatron: Callable[[Any], Any]

    @property
    def argument(self) -> str:
        """Its name among the arguments that Megatron keeps in a checkpoint."""
        return self.flag.replace("-", "_") if self.flag is not None else self.ours

    @property
    def of_experts(self) -> bool:
        """Whether it means nothing in a model without experts."""
        return self.ours == "num_moe_experts" or self.ours.startswith("moe_")

    @property
    def of_yarn(self) -> bool:
        """Whether it means nothing with plain RoPE."""
        return self.hf_key is not None and self.hf_key.startswith(ROPE_SCALING)


_AS_OURS = "as ours"


def _row(
    ours: str,
    hf_key: str | None,
    from_hf: hf.Reader = hf.whole,
    to_hf: hf.Writer = hf.itself,
    *,
    flag: str | None = _AS_OURS,
    to_flag: Callable[[Any, ModelConfig], Any] = hf.itself,
    attribute: str | None = _AS_OURS,
    to_attribute: Callable[[Any, ModelConfig], Any] = hf.itself,
    from_megatron: Callable[[Any], Any] = lambda value: value,
) -> Field:
    if flag is _AS_OURS:
        flag = ours.replace("_", "-")
    if attribute is _AS_OURS:
        attribute = ours
    return Field(
        ours, hf_key, from_hf, to_hf, flag, to_flag, attribute, to_attribute, from_megatron
    )


def _whole_base(base: float, model: ModelConfig) -> int:
    if not base.is_integer():
        raise ValueError(
            f"rotary_base {base} of {model.name}: upstream's --rotary-base takes whole numbers only"
        )
    return int(base)


def _pattern(layers: list[int], model: ModelConfig) -> str:
    return f"({format_layer_pattern(layers)})"


def _first(value: Any) -> Any:
    """Megatron allows several losses and then holds a list."""
    return value[0] if isinstance(value, list) and value else value


FIELDS: tuple[Field, ...] = (
    _row("name", None, flag=None, attribute=None),
    # The block stack.
    _row("num_layers", "num_hidden_layers"),
    _row("hidden_size", "hidden_size"),
    _row("vocab_size", "vocab_size", flag="padded-vocab-size", attribute=None),
    _row("max_position_embeddings", "max_position_embeddings", attribute=None),
    _row("ffn_hidden_size", "intermediate_size"),
    _row("layernorm_epsilon", "rms_norm_eps", hf.number_or(1e-6), flag="norm-epsilon"),
    _row("init_method_std", "initializer_range", hf.number_or(0.02)),
    _row(
        "share_embeddings_and_output_weights", "tie_word_embeddings", hf.unchecked(False),
        flag="untie-embeddings-and-output-weights", to_flag=lambda shared, model: not shared,
        attribute=None, from_megatron=lambda untied: not untied,
    ),
    # Multi-head latent attention.
    _row("num_attention_heads", "num_attention_heads"),
    _row("q_lora_rank", "q_lora_rank", hf.whole_or_null),
    _row("kv_lora_rank", "kv_lora_rank"),
    _row("qk_head_dim", "qk_nope_head_dim"),
    _row("qk_pos_emb_head_dim", "qk_rope_head_dim"),
    _row("v_head_dim", "v_head_dim"),
    # Rotary positions.
    _row("rope_type", "rope_scaling.type", hf.rope_type),
    _row("rotary_base", "rope_theta", hf.number_or(10000.0), to_flag=_whole_base),
    _row("rotary_scaling_factor", "rope_scaling.factor", hf.number),
    _row(
        "original_max_position_embeddings", "rope_scaling.original_max_position_embeddings",
        hf.original_length, flag=None,
    ),
    _row("beta_fast", "rope_scaling.beta_fast", hf.number_or(32.0), flag=None),
    _row("beta_slow", "rope_scaling.beta_slow", hf.number_or(1.0), flag=None),
    # Both absent is plain YaRN: cos and sin grow by 0.1 ln(factor) + 1, the softmax not at all.
    _row("mscale", "rope_scaling.mscale", hf.number_or(1.0)),
    _row("mscale_all_dim", "rope_scaling.mscale_all_dim", hf.number_or(0.0)),
    # Mixture of experts.
    _row(
        "moe_layer_freq", "first_k_dense_replace", hf.layer_kinds, hf.number_of_dense_layers,
        to_flag=_pattern, to_attribute=lambda layers, model: list(layers),
    ),
    _row("num_moe_experts", "n_routed_experts", flag="num-experts"),
    _row("moe_ffn_hidden_size", "moe_intermediate_size"),
    _row(
        "moe_shared_expert_intermediate_size", "n_shared_experts",
        hf.shared_width, hf.number_of_shared_experts,
    ),
    _row("moe_router_topk", "num_experts_per_tok", to_attribute=hf.or_else(1)),
    _row("moe_router_num_groups", "n_group", hf.groups, hf.or_else(1)),
    _row("moe_router_group_topk", "topk_group", hf.groups, hf.or_else(1)),
    _row("moe_router_score_function", "scoring_func", hf.score_function),
    _row("moe_router_pre_softmax", "norm_topk_prob", hf.keeps_gates, hf.renormalises_gates),
    _row(
        # Absent, it is 1 to DeepSeek's code and 2.5 to transformers.
        "moe_router_topk_scaling_factor", "routed_scaling_factor", hf.number, hf.or_else(1.0),
    ),
    _row("moe_router_enable_expert_bias", "topk_method", hf.has_bias, hf.topk_method),
    _row("moe_aux_loss_coeff", "aux_loss_alpha", hf.balance_factor, from_megatron=_first),
    _row(
        "moe_router_load_balancing_type", "seq_aux", hf.balancing, hf.balances_sequences,
        from_megatron=_first,
    ),
    # Multi-token prediction. Absent means none: transformers 4 wrote no key for models without.
    _row("mtp_num_layers", "num_nextn_predict_layers", hf.unchecked(None), hf.or_else(0)),
)  # fmt: skip
"""In the order of `ModelConfig`."""


def flags(model: ModelConfig) -> Iterator[tuple[str, *tuple[object, ...]]]:
    """Megatron's flags for a model, each with its value if it has one.

    Raises:
        ValueError: a field says something that no flag can, with the sentence.
    """
    for field in FIELDS:
        if field.flag is None or (field.of_experts and not model.moe_layers):
            continue
        value = field.to_flag(getattr(model, field.ours), model)
        if value is True:
            yield (field.flag,)
        elif value is not None and value is not False:
            yield field.flag, value


def attributes(model: ModelConfig) -> dict[str, Any]:
    """A model in the attributes of Megatron's `MLATransformerConfig`."""
    return {
        field.attribute: field.to_attribute(getattr(model, field.ours), model)
        for field in FIELDS
        if field.attribute is not None
    }


def from_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the arguments in a Megatron checkpoint give."""
    said = {}
    for field in FIELDS:
        value = arguments.get(field.argument)
        if value is None:  # the padded vocabulary is not always there, the vocabulary is
            value = arguments.get(field.ours)
        said[field.ours] = field.from_megatron(value)
    return _given(said)


def from_attributes(config: object) -> dict[str, Any]:
    """The fields that a Megatron configuration gives."""
    said = {
        field.ours: field.from_megatron(getattr(config, field.attribute, None))
        for field in FIELDS
        if field.attribute is not None
    }
    return _given(said)


def without_experts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a model whose layers are all dense."""
    of_experts = {field.ours for field in FIELDS if field.of_experts}
    return {name: value for name, value in fields.items() if name not in of_experts}


def _given(said: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in said.items() if value is not None}
    return given if "num_moe_experts" in given else without_experts(given)
