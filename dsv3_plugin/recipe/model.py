"""What a model is: its shape and its mathematics, in Megatron-Core's own field names.

A `ModelConfig` says everything that a checkpoint's meaning depends on, and nothing about how it is
trained or on what. Two conventions of the DeepSeek family are derived, not flags:

* a group of experts is scored by the sum of its best two experts when scores are sigmoids
  (DeepSeek-V3, arXiv 2412.19437 section 2.1.2), by its best expert when they are a softmax
  (DeepSeek-V2, arXiv 2405.04434 section 2.2.2);
* the norms of the two MLA latents use eps 1e-6 whatever `layernorm_epsilon` says.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field, PositiveFloat

from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.amounts import no_boolean
from dsv3_plugin.recipe.fitting import divisors, multiples, nearest
from dsv3_plugin.recipe.section import Section, Size
from dsv3_plugin.recipe.validation import validate

MOST_LAYERS = 4096
MOST_EXPERTS = 1 << 16
"""In all layers together: each has tensors, whose names are looked at. Kimi-K2 has 23 thousand."""
_MOST_PREDICTED = 64
_LONGEST_PATTERN = 10_000

LATENT_NORM_EPSILON = 1e-6
"""eps of the RMSNorms on the Q and KV latents, as in DeepSeek's and transformers' code."""


_YARN_WITHOUT_EFFECT = {
    "rotary_scaling_factor": 1.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
"""What the YaRN fields of a model with plain RoPE are set to."""


class ModelConfig(Section):
    """A model of the DeepSeek-V2/V3 family (MLA, DeepSeekMoE, MTP)."""

    name: str
    """What it is called; by default as its file is."""
    # The block stack.
    num_layers: Annotated[Size, Field(le=MOST_LAYERS)]
    """Decoder layers, those of multi-token prediction aside."""
    hidden_size: Size
    """Width of the residual stream."""
    vocab_size: Size
    """Rows of the embedding and of the output head."""
    max_position_embeddings: Size
    """Longest sequence."""
    ffn_hidden_size: Size
    """Width of the dense layers' SwiGLU."""
    layernorm_epsilon: PositiveFloat = 1e-6
    """ε of the RMSNorms; those of the MLA latents have 1e-6 always."""
    init_method_std: PositiveFloat = 0.02
    """Standard deviation that all weights are drawn with."""
    share_embeddings_and_output_weights: bool = False
    """Whether the embedding is the output head too."""

    # Multi-head latent attention.
    num_attention_heads: Size
    """Heads, as many of keys and values as of queries."""
    q_lora_rank: Size | None = None
    """Rank of the Q latent; null: queries come straight from the hidden state (V2-Lite)."""
    kv_lora_rank: Size
    """Rank of the latent that keys and values are made of."""
    qk_head_dim: Size
    """Per-head width of queries and keys without position (`qk_nope_head_dim` in HF)."""
    qk_pos_emb_head_dim: Size
    """Width of the decoupled rotary part, its key shared by all heads (`qk_rope_head_dim`)."""
    v_head_dim: Size
    """Per-head width of values."""

    # Rotary positions. With rope_type "rope" the YaRN fields mean nothing and are set neutral.
    rope_type: Literal["rope", "yarn"] = "rope"
    """rope: plain; yarn: stretched to longer sequences by YaRN, whose keys are the next ones."""
    rotary_base: PositiveFloat = 10000.0
    """θ: rotary frequencies run from 1 down to about 1/θ."""
    rotary_scaling_factor: PositiveFloat = 1.0
    """YaRN: by how much positions are stretched."""
    original_max_position_embeddings: Size
    """YaRN: longest sequence before; as max_position_embeddings with plain RoPE."""
    beta_fast: PositiveFloat = 32.0
    """YaRN: frequencies that turn more often than this in the original length stay."""
    beta_slow: PositiveFloat = 1.0
    """YaRN: frequencies that turn less often than this are stretched in full."""
    mscale: float = 1.0
    """YaRN: 0.1 · mscale · ln(factor) + 1, over the same of mscale_all_dim, multiplies cos and
    sin."""
    mscale_all_dim: float = 1.0
    """YaRN: 0.1 · mscale_all_dim · ln(factor) + 1, squared, multiplies attention scores."""

    # Mixture of experts.
    moe_layer_freq: list[Annotated[Literal[0, 1], pydantic.BeforeValidator(no_boolean)]]
    """Per layer: 1 MoE, 0 dense. YAML may say an integer n (every n-th layer, the first included)
    or an expression such as "[0]*3+[1]*58", as on upstream's command line."""
    num_moe_experts: Annotated[Size, Field(le=MOST_EXPERTS)] | None = None
    """Routed experts of an MoE layer; null: all layers are dense."""
    moe_ffn_hidden_size: Size | None = None
    """Width of a routed expert's SwiGLU."""
    moe_shared_expert_intermediate_size: Size | None = None
    """Summed width of the shared experts (number of shared experts × expert FFN)."""
    moe_router_topk: Size | None = None
    """Routed experts that a token goes to."""
    moe_router_num_groups: Size | None = None
    """Groups of experts, of which a token may use some only; null: no groups."""
    moe_router_group_topk: Size | None = None
    """Groups that a token may use."""
    moe_router_score_function: Literal["sigmoid", "softmax"] = "sigmoid"
    """How experts are scored. sigmoid: as V3, gates renormalised over the chosen ones."""
    moe_router_pre_softmax: bool = False
    """Softmax over all experts before choosing, gates not renormalised (V2)."""
    moe_router_topk_scaling_factor: PositiveFloat | None = None
    """What gates are multiplied with; null: nothing."""
    moe_router_enable_expert_bias: bool = False
    """Experts are chosen with a bias that balances their load (V3)."""
    moe_aux_loss_coeff: float = Field(default=0.0, ge=0.0)
    """α of the auxiliary balancing loss."""
    moe_router_load_balancing_type: Literal["seq_aux_loss", "aux_loss", "none"] = "none"
    """What that loss balances: each sequence, or the batch."""

    # Multi-token prediction.
    mtp_num_layers: Annotated[int, Field(ge=0, le=_MOST_PREDICTED)] | None = None
    """Depth of multi-token prediction; null and 0 both mean none, and are stored as null."""

    def __hash__(self) -> int:
        """Of a few fields, so that costs can be remembered by model; equality looks at all."""
        return hash((self.name, self.num_layers, self.hidden_size, self.num_moe_experts))

    @property
    def moe_layers(self) -> list[int]:
        """Zero-based indices of the MoE layers of the main model."""
        return [layer for layer, is_moe in enumerate(self.moe_layer_freq) if is_moe]

    @property
    def mtp_is_moe(self) -> bool:
        """Whether the MTP layers are MoE: they copy the kind of the last main layer."""
        return bool(self.moe_layer_freq[-1])

    def _pattern_of_all(self) -> list[int]:
        """The layer pattern, its last kind repeated to all layers there are, or cut off there."""
        more = self.num_layers - len(self.moe_layer_freq)
        return (self.moe_layer_freq + self.moe_layer_freq[-1:] * more)[: self.num_layers]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The model a YAML file describes; anything wrong is a `UserError` naming file and key."""
        path = Path(path)
        data = yaml_text.read_mapping(path)
        return validate(cls, {"name": path.stem, **data}, str(path))

    def write(self, path: str | Path) -> None:
        """Write the YAML that `read` turns back into an equal model."""
        refused = write_errors_as(lambda reason: f"{path}: cannot be written ({reason}).")
        with refused, whole_file(path) as beside:
            beside.write_text(self.to_yaml(), encoding="utf-8")

    def to_yaml(self) -> str:
        """The YAML text of `write`."""
        return yaml_text.dump(self.to_mapping())

    def to_mapping(self) -> dict[str, Any]:
        """The fields as plain YAML values, the layer pattern in its short form."""
        data = self.model_dump(mode="json")
        data["moe_layer_freq"] = format_layer_pattern(self.moe_layer_freq)
        return data

    @pydantic.model_validator(mode="before")
    @classmethod
    def _normalise(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        layers = data.get("num_layers")
        if isinstance(layers, int) and 0 < layers <= MOST_LAYERS:
            default = 1 if data.get("num_moe_experts") is not None else f"[0]*{layers}"
            pattern = data.get("moe_layer_freq")
            pattern = default if pattern is None else pattern
            if isinstance(pattern, int | str) and not isinstance(pattern, bool):
                data["moe_layer_freq"] = parse_layer_pattern(pattern, layers)
        # One spelling for each way of saying "none", so that equal models compare equal.
        if data.get("mtp_num_layers") == 0:
            data["mtp_num_layers"] = None
        if data.get("moe_router_topk_scaling_factor") == 1.0:
            data["moe_router_topk_scaling_factor"] = None
        if data.get("moe_router_num_groups") == 1 and data.get("moe_router_group_topk") == 1:
            data["moe_router_num_groups"] = data["moe_router_group_topk"] = None
        if data.get("moe_aux_loss_coeff", 0.0) == 0.0:
            data["moe_router_load_balancing_type"] = "none"
        if data.get("rope_type") == "yarn" and "rotary_scaling_factor" not in data:
            raise ValueError(
                "rope_type yarn stretches positions, and nothing says by how much: give "
                "rotary_scaling_factor, and original_max_position_embeddings, the longest sequence "
                "before"
            )
        if data.get("rope_type") == "yarn" and data["rotary_scaling_factor"] == 1.0:
            data["rope_type"] = "rope"  # positions stretched by 1; upstream's fused kernel says so
        if data.get("rope_type", "rope") == "rope":
            neutral = _YARN_WITHOUT_EFFECT
            if "max_position_embeddings" in data:
                length = data["max_position_embeddings"]
                neutral = neutral | {"original_max_position_embeddings": length}
            # What is no number is left as it is, to be refused like anywhere else.
            data |= {name: v for name, v in neutral.items() if _is_number(data.get(name, v))}
        return data

    @pydantic.model_validator(mode="after")
    def _rules(self) -> Self:
        if self.moe_aux_loss_coeff and self.moe_router_load_balancing_type == "none":
            raise ValueError(
                f"moe_aux_loss_coeff {self.moe_aux_loss_coeff} needs "
                "moe_router_load_balancing_type: seq_aux_loss or aux_loss"
            )
        if len(self.moe_layer_freq) != self.num_layers:
            raise ValueError(
                f"moe_layer_freq describes {len(self.moe_layer_freq)} layers, "
                f"num_layers says {self.num_layers}: write "
                f'`moe_layer_freq: "{format_layer_pattern(self._pattern_of_all())}"`, or the like'
            )
        if self.qk_pos_emb_head_dim % 2:
            raise ValueError(
                f"qk_pos_emb_head_dim {self.qk_pos_emb_head_dim} must be even: take "
                f"{multiples(self.qk_pos_emb_head_dim, 2)}"
            )
        if self.moe_layers:
            self._moe_rules()
        elif self.num_moe_experts is not None:
            raise ValueError(
                f"num_moe_experts is {self.num_moe_experts} but moe_layer_freq has no MoE layer: "
                "set num_moe_experts to null, or write "
                f'`moe_layer_freq: "[1]*{self.num_layers}"`, or the like'
            )
        return self

    def _moe_rules(self) -> None:
        for key in ("num_moe_experts", "moe_ffn_hidden_size", "moe_router_topk"):
            if getattr(self, key) is None:
                raise ValueError(
                    f"a model with MoE layers needs {key}: give it, or have dense layers alone "
                    f'with `moe_layer_freq: "[0]*{self.num_layers}"` and `num_moe_experts: null`'
                )
        experts, topk = self.num_moe_experts, self.moe_router_topk
        layers = len(self.moe_layers) + (self.mtp_num_layers or 0)
        if layers * experts > MOST_EXPERTS:
            raise ValueError(
                f"{layers} layers of {experts} routed experts (num_moe_experts) are "
                f"{layers * experts:,} experts, and {MOST_EXPERTS:,} are the most that a model may "
                f"have: take {MOST_EXPERTS // layers} or fewer"
            )
        if topk > experts:
            groups, allowed = self.moe_router_num_groups or 1, self.moe_router_group_topk or 1
            raise ValueError(
                f"moe_router_topk {topk} is more than the {experts} routed experts "
                f"(num_moe_experts): take {min(allowed, groups) * experts // groups} or fewer"
            )
        shared = self.moe_shared_expert_intermediate_size
        if shared is not None and shared % self.moe_ffn_hidden_size:
            raise ValueError(
                f"moe_shared_expert_intermediate_size {shared} is not a whole number of experts "
                f"of width {self.moe_ffn_hidden_size} (moe_ffn_hidden_size): take "
                f"{multiples(shared, self.moe_ffn_hidden_size)}, or null for no shared expert"
            )
        if self.moe_router_score_function == "sigmoid" and self.moe_router_pre_softmax:
            raise ValueError(
                "moe_router_pre_softmax needs moe_router_score_function: softmax, or set it to "
                "false"
            )
        if self.moe_router_score_function == "softmax" and self.moe_router_enable_expert_bias:
            raise ValueError(
                "moe_router_enable_expert_bias needs moe_router_score_function: sigmoid; with "
                "softmax set it to false"
            )
        self._group_rules()

    def _group_rules(self) -> None:
        experts, topk = self.num_moe_experts, self.moe_router_topk
        groups, allowed = self.moe_router_num_groups, self.moe_router_group_topk
        if (groups is None) != (allowed is None):
            raise ValueError(
                "moe_router_num_groups and moe_router_group_topk come together or not at all: "
                "give both, or set both to null"
            )
        if groups is None:
            return
        if experts % groups:
            raise ValueError(
                f"{experts} routed experts (num_moe_experts) do not divide into {groups} groups "
                f"(moe_router_num_groups): take a number that divides them, such as "
                f"{self._fitting_groups()}"
            )
        if allowed > groups:
            raise ValueError(
                f"moe_router_group_topk {allowed} is more than the {groups} groups "
                f"(moe_router_num_groups): take {groups} or fewer"
            )
        if topk > allowed * (experts // groups):
            enough = -(-topk // (experts // groups))
            raise ValueError(
                f"moe_router_topk {topk} is more than the {allowed * (experts // groups)} experts "
                f"of {allowed} allowed groups: take {allowed * (experts // groups)} or fewer, or "
                f"`moe_router_group_topk: {enough}`"
            )
        if self.moe_router_score_function == "sigmoid" and experts // groups < 2:
            raise ValueError(
                f"sigmoid routing scores a group by its best two experts, and {groups} groups "
                f"(moe_router_num_groups) of {experts} experts have one each: take "
                f"{self._fitting_groups()} groups or fewer, or null for no groups"
            )

    def _fitting_groups(self) -> int:
        """The number of groups that is the nearest to the one given, of those that would do."""
        experts, topk = self.num_moe_experts, self.moe_router_topk
        groups, allowed = self.moe_router_num_groups, self.moe_router_group_topk
        least = 2 if self.moe_router_score_function == "sigmoid" else 1
        would_do = [
            number
            for number in divisors(experts)
            if number >= allowed and max(-(-topk // allowed), least) <= experts // number
        ]
        return nearest(would_do or divisors(experts), groups)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_TERM = re.compile(r"\[([01](?:,[01])*)\](?:\*(\d{1,18}))?")


def parse_layer_pattern(pattern: int | str, num_layers: int) -> list[int]:
    """The per-layer list behind upstream's `--moe-layer-freq` notations.

    An integer n makes every n-th layer MoE, starting with the first; a string is a sum of repeated
    lists such as "[0]*3+[1]*58". Raises ValueError with the sentence.
    """
    if isinstance(pattern, int):
        if pattern < 1:
            raise ValueError(f"moe_layer_freq {pattern} must be at least 1")
        return [int(layer % pattern == 0) for layer in range(num_layers)]
    text = pattern.replace(" ", "").replace("(", "").replace(")", "")
    layers: list[int] = []
    for term in text.split("+") if len(text) <= _LONGEST_PATTERN else [""]:
        match = _TERM.fullmatch(term)
        if match is None:
            raise ValueError(
                f"moe_layer_freq '{pattern}' is not a layer pattern; write it like '[0]*3+[1]*58'"
            )
        kinds, times = [int(kind) for kind in match[1].split(",")], int(match[2] or 1)
        if len(layers) + len(kinds) * times > MOST_LAYERS:
            raise ValueError(
                f"moe_layer_freq '{pattern}' describes more than {MOST_LAYERS:,} layers, "
                f"num_layers says {num_layers}"
            )
        layers += kinds * times
    return layers


def format_layer_pattern(layers: list[int]) -> str:
    """The short form of a per-layer list: [0, 0, 0, 1, 1] → "[0]*3+[1]*2"."""
    runs: list[list[int]] = []
    for kind in layers:
        if runs and runs[-1][0] == kind:
            runs[-1][1] += 1
        else:
            runs.append([kind, 1])
    return "+".join(f"[{kind}]*{count}" for kind, count in runs)
