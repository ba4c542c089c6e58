"""The one table of names: Hugging Face tensors ↔ regions of Megatron's distributed tensors.

`TABLE` is read in both directions, so nothing can be imported that is not exported. A row says
which tensor of a Hugging Face checkpoint is which part of which key of a `torch_dist` checkpoint,
and its shape in terms of the model. `layout(model)` multiplies the rows out over layers and
experts; the result is all that import, export, verify and inspect know about names.

What the rows have to express:

* identity: most weights;
* gate and up projection ↔ the two halves of `linear_fc1`, gate first (`half`);
* expert e ↔ index e of an extra leading axis (`{expert}` in the Hugging Face name);
* the MTP layer's copies of embedding and head: Hugging Face repeats them, Megatron shares them
  (`copy_of`): checked when read, written when exported;
* norms that Transformer Engine keeps inside the following linear layer and the local backend keeps
  as modules (`key` and `alias`): one checkpoint carries both names for the same bytes, so either
  backend, and an unmodified upstream, loads it.

Keys are those of `GPTModel.sharded_state_dict()` in megatron-core 0.19.2.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from dsv3_plugin.recipe.fields import FIELDS
from dsv3_plugin.recipe.model import ModelConfig

BLOCK = 128
"""Side of the square that shares one `weight_scale_inv` in DeepSeek's FP8 checkpoints."""

SCALE = "_scale_inv"
"""Suffix of the scales' names, after `.weight`, on both sides."""

QUANTISED = "_e4m3"
"""Suffix of the key of a weight kept in FP8. Another key than the weight's own on purpose: a
loader that knows nothing of scales must miss the weight, not read it without them."""

WEIGHT_KEYS = ("embedding.", "decoder.", "mtp.", "output_layer.")
"""How a key of the model's own state begins; optimizer and random state do not."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

Precision = Literal["fp8", "bf16", "fp32"]


class Row(NamedTuple):
    """One line of the table. Names are relative to their scope's prefix."""

    scope: str
    hf: str
    key: str
    shape: tuple[str, ...]
    precision: Precision = "bf16"
    """As DeepSeek publishes it: linear weights in FP8 with scales, the router bias in FP32."""
    half: int | None = None
    """0: first half of the key's rows (gate), 1: second half (up)."""
    alias: str | None = None
    """Upstream's local spec's name for the same tensor."""
    copy_of: str | None = None
    """Full Hugging Face name of the tensor this one repeats."""


# Scopes: `model` once; `untied` once if the head is not the embedding; `layer` for every
# transformer layer, the MTP ones included; `q_latent`/`q_direct`, `dense`/`moe` by kind of layer;
# `bias` MoE layers with a router bias; `expert` per routed expert; `shared` MoE layers with shared
# experts; `mtp` per MTP layer.
TABLE: tuple[Row, ...] = (
    Row("model", EMBEDDING, "embedding.word_embeddings.weight",
        ("vocab", "hidden")),
    Row("model", "model.norm.weight", "decoder.final_layernorm.weight", ("hidden",)),
    Row("untied", HEAD, "output_layer.weight", ("vocab", "hidden")),

    Row("layer", "input_layernorm.weight", "input_layernorm.weight", ("hidden",)),
    Row("q_direct", "self_attn.q_proj.weight", "self_attention.linear_q_proj.weight",
        ("q_out", "hidden"), "fp8"),
    Row("q_latent", "self_attn.q_a_proj.weight", "self_attention.linear_q_down_proj.weight",
        ("q_rank", "hidden"), "fp8"),
    Row("q_latent", "self_attn.q_a_layernorm.weight",
        "self_attention.linear_q_up_proj.layer_norm_weight", ("q_rank",),
        alias="self_attention.q_layernorm.weight"),
    Row("q_latent", "self_attn.q_b_proj.weight", "self_attention.linear_q_up_proj.weight",
        ("q_out", "q_rank"), "fp8"),
    Row("layer", "self_attn.kv_a_proj_with_mqa.weight",
        "self_attention.linear_kv_down_proj.weight", ("kv_in", "hidden"), "fp8"),
    Row("layer", "self_attn.kv_a_layernorm.weight",
        "self_attention.linear_kv_up_proj.layer_norm_weight", ("kv_rank",),
        alias="self_attention.kv_layernorm.weight"),
    Row("layer", "self_attn.kv_b_proj.weight", "self_attention.linear_kv_up_proj.weight",
        ("kv_out", "kv_rank"), "fp8"),
    Row("layer", "self_attn.o_proj.weight", "self_attention.linear_proj.weight",
        ("hidden", "o_in"), "fp8"),

    Row("dense", "post_attention_layernorm.weight", "mlp.linear_fc1.layer_norm_weight",
        ("hidden",), alias="pre_mlp_layernorm.weight"),
    Row("dense", "mlp.gate_proj.weight", "mlp.linear_fc1.weight", ("ffn", "hidden"), "fp8", 0),
    Row("dense", "mlp.up_proj.weight", "mlp.linear_fc1.weight", ("ffn", "hidden"), "fp8", 1),
    Row("dense", "mlp.down_proj.weight", "mlp.linear_fc2.weight", ("hidden", "ffn"), "fp8"),

    Row("moe", "post_attention_layernorm.weight", "pre_mlp_layernorm.weight", ("hidden",)),
    Row("moe", "mlp.gate.weight", "mlp.router.weight", ("experts", "hidden")),
    Row("bias", "mlp.gate.e_score_correction_bias", "mlp.router.expert_bias", ("experts",), "fp32"),
    Row("expert", "mlp.experts.{expert}.gate_proj.weight", "mlp.experts.experts.linear_fc1.weight",
        ("expert_ffn", "hidden"), "fp8", 0),
    Row("expert", "mlp.experts.{expert}.up_proj.weight", "mlp.experts.experts.linear_fc1.weight",
        ("expert_ffn", "hidden"), "fp8", 1),
    Row("expert", "mlp.experts.{expert}.down_proj.weight", "mlp.experts.experts.linear_fc2.weight",
        ("hidden", "expert_ffn"), "fp8"),
    Row("shared", "mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.linear_fc1.weight",
        ("shared_ffn", "hidden"), "fp8", 0),
    Row("shared", "mlp.shared_experts.up_proj.weight", "mlp.shared_experts.linear_fc1.weight",
        ("shared_ffn", "hidden"), "fp8", 1),
    Row("shared", "mlp.shared_experts.down_proj.weight", "mlp.shared_experts.linear_fc2.weight",
        ("hidden", "shared_ffn"), "fp8"),

    Row("mtp", "embed_tokens.weight", "embedding.word_embeddings.weight", ("vocab", "hidden"),
        copy_of=EMBEDDING),
    Row("mtp", "enorm.weight", "enorm.weight", ("hidden",)),
    Row("mtp", "hnorm.weight", "hnorm.weight", ("hidden",)),
    Row("mtp", "eh_proj.weight", "eh_proj.weight", ("hidden", "2_hidden")),
    Row("mtp", "shared_head.norm.weight", "final_layernorm.weight", ("hidden",)),
    Row("mtp", "shared_head.head.weight", "output_layer.weight", ("vocab", "hidden"),
        copy_of=HEAD),
)  # fmt: skip

CONFIG_KEYS = {
    "untied": "tie_word_embeddings", "layer": "num_hidden_layers",
    "q_direct": "q_lora_rank", "q_latent": "q_lora_rank",
    "dense": "first_k_dense_replace", "moe": "first_k_dense_replace", "bias": "topk_method",
    "expert": "n_routed_experts", "shared": "n_shared_experts", "mtp": "num_nextn_predict_layers",
}  # fmt: skip
"""Scope → the key of `config.json` by which a model has its tensors or not."""

AXIS_KEYS = {
    "vocab": ("vocab_size",), "hidden": ("hidden_size",), "2_hidden": ("hidden_size",),
    "q_rank": ("q_lora_rank",), "kv_rank": ("kv_lora_rank",),
    "q_out": ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim"),
    "kv_in": ("kv_lora_rank", "qk_rope_head_dim"),
    "kv_out": ("num_attention_heads", "qk_nope_head_dim", "v_head_dim"),
    "o_in": ("num_attention_heads", "v_head_dim"),
    "ffn": ("intermediate_size",), "experts": ("n_routed_experts",),
    "expert_ffn": ("moe_intermediate_size",),
    "shared_ffn": ("n_shared_experts", "moe_intermediate_size"),
}  # fmt: skip
"""Axis → the keys of `config.json` that its length is made of."""

# Modules whose sharded state carries an `_extra_state` object. They are empty outside delayed-
# scaling FP8, but upstream refuses a checkpoint that lacks one. Norms and the core attention have
# one with Transformer Engine only; writing all of them serves both backends.
EXTRA_STATES: tuple[tuple[str, str], ...] = (
    ("model", "decoder.final_layernorm"),
    ("layer", "input_layernorm"),
    ("layer", "self_attention.core_attention"),
    ("layer", "self_attention.linear_proj"),
    ("q_direct", "self_attention.linear_q_proj"),
    ("q_latent", "self_attention.linear_q_down_proj"),
    ("q_latent", "self_attention.linear_q_up_proj"),
    ("layer", "self_attention.linear_kv_down_proj"),
    ("layer", "self_attention.linear_kv_up_proj"),
    ("dense", "mlp.linear_fc1"),
    ("dense", "mlp.linear_fc2"),
    ("moe", "pre_mlp_layernorm"),
    ("expert", "mlp.experts.experts.linear_fc1"),
    ("expert", "mlp.experts.experts.linear_fc2"),
    ("shared", "mlp.shared_experts.linear_fc1"),
    ("shared", "mlp.shared_experts.linear_fc2"),
    ("mtp", "enorm"),
    ("mtp", "hnorm"),
    ("mtp", "eh_proj"),
    ("mtp", "final_layernorm"),
)

DERIVED = (".self_attn.rotary_emb.inv_freq",)
"""Endings of Hugging Face names that some exporters write and every reader recomputes; they carry
no information, so an import accepts and drops them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the Hugging Face checkpoint and the region of a distributed tensor it is.

    The region starts at `offset` in the tensor `key` of `global_shape` and has the tensor's own
    `shape`, behind as many axes of length 1 as the distributed tensor has more (the expert axis).
    """

    name: str
    shape: tuple[int, ...]
    precision: Precision
    key: str
    offset: tuple[int, ...]
    global_shape: tuple[int, ...]
    alias: str | None = None
    copy_of: str | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The region's extent, with the leading axes of length 1."""
        return (1,) * (len(self.offset) - len(self.shape)) + self.shape

    def scale(self) -> "Entry":
        """The entry of this weight's `weight_scale_inv`: FP32, one value per 128×128 block.

        Gate and up keep their own ragged edge: their scales are stacked, not re-tiled.
        """
        *lead, rows, columns = self.global_shape
        height, width = self.shape
        blocks, across = blocks_of(height), blocks_of(columns)
        return Entry(
            name=self.name + SCALE,
            shape=(blocks, blocks_of(width)),
            precision="fp32",
            key=self.key + SCALE,
            offset=(*self.offset[:-2], self.offset[-2] // height * blocks, 0),
            global_shape=(*lead, rows // height * blocks, across),
        )

    def quantised(self) -> "Entry":
        """The same region for a weight that stays in FP8: same place, its own key."""
        return Entry(
            self.name, self.shape, "fp8", self.key + QUANTISED, self.offset, self.global_shape
        )


def blocks_of(length: int) -> int:
    """Number of 128-blocks along an axis, the ragged last one counted."""
    return -(-length // BLOCK)


def layout(model: ModelConfig) -> list[Entry]:
    """Every tensor of the model's Hugging Face checkpoint (scales apart), in that file's order."""
    entries = []
    size = _sizes(model)
    by_scope: dict[str, list[tuple[Row, tuple[int, ...]]]] = {}
    for row in TABLE:
        shape = tuple(size[axis] for axis in row.shape)
        by_scope.setdefault(row.scope, []).append((row, shape))
    for scope, hf_prefix, key_prefix, expert in _scopes(model):
        for row, shape in by_scope.get(scope, ()):
            copy_of = row.copy_of
            if copy_of == HEAD and model.share_embeddings_and_output_weights:
                copy_of = EMBEDDING
            whole, offset = shape, (0,) * len(shape)
            if row.half is not None:
                whole = (2 * shape[0], *shape[1:])
                offset = (row.half * shape[0], *offset[1:])
            name = hf_prefix + row.hf
            if expert is not None:
                name = hf_prefix + row.hf.replace("{expert}", str(expert))
                whole = (size["experts"], *whole)
                offset = (expert, *offset)
            # A copy lives where its original does, outside the MTP layer.
            key = _key_of_copy(copy_of) if copy_of else key_prefix + row.key
            alias = key_prefix + row.alias if row.alias else None
            entries.append(Entry(name, shape, row.precision, key, offset, whole, alias, copy_of))
    return entries


def tied_head(model: ModelConfig) -> Entry | None:
    """The `lm_head.weight` that some savers write though the head is the embedding.

    A copy like those of the MTP layer, checked when read; but no loader misses it, so it is none of
    the model's tensors (`layout`) and is not written. None for a model with a head of its own.
    """
    if not model.share_embeddings_and_output_weights:
        return None
    embedding = next(entry for entry in layout(model) if entry.name == EMBEDDING)
    return replace(embedding, name=HEAD, copy_of=EMBEDDING)


def config_key(name: str) -> str | None:
    """The key of `config.json` that says whether there is a tensor of this Hugging Face name."""
    row = _row_of(name)
    return row and CONFIG_KEYS.get(row.scope)


def shape_keys(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> list[str]:
    """The keys of `config.json` that the axes are made of in which two shapes of a tensor differ.

    Args:
        name: of the tensor, or of the scales of one, as Hugging Face has it.
        shape, expected: the shapes.
    """
    row = _row_of(name)
    if row is None:
        return []
    same = shape if len(shape) == len(expected) else (None,) * len(expected)
    axes = [axis for axis, a, b in zip(row.shape, same, expected, strict=True) if a != b]
    return list(dict.fromkeys(key for axis in axes for key in AXIS_KEYS[axis]))


def shape_fields(entry: Entry, shape: tuple[int, ...], expected: tuple[int, ...]) -> list[str]:
    """The same as fields of the model, of shapes that a distributed tensor may have."""
    axes = len(entry.shape)
    keys = shape_keys(entry.name, shape[-axes:], expected[-axes:])
    return [field.ours for key in keys for field in FIELDS if field.hf_key == key]


def _row_of(name: str) -> Row | None:
    """The row of a tensor of this Hugging Face name, or of its scales."""
    name = re.sub(r"^model\.layers\.\d+\.", "", name.removesuffix(SCALE))
    name = re.sub(r"\.experts\.\d+\.", ".experts.{expert}.", name)
    return next((row for row in TABLE if row.hf == name), None)


def hf_tensors(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], Precision]]:
    """(name, shape, precision) of every tensor of the model's Hugging Face checkpoint.

    For DeepSeek-V3 these are the 46,183 tensors of the published one; the FP8 form has a
    `…_scale_inv` beside each of the 45,808 whose precision is "fp8".
    """
    for entry in layout(model):
        yield entry.name, entry.shape, entry.precision


def extra_states(model: ModelConfig) -> Iterator[str]:
    """Keys of the empty `_extra_state` objects of both backends, in upstream's shard notation."""
    for scope, _, key_prefix, expert in _scopes(model):
        for where, module in EXTRA_STATES:
            if where == scope:
                shard = "0_1" if expert is None else f"{expert}_{model.num_moe_experts}"
                yield f"{key_prefix}{module}._extra_state/shard_{shard}"


def values(model: ModelConfig) -> int:
    """Number of values in the Hugging Face checkpoint, copies included, scales apart."""
    return sum(math.prod(entry.shape) for entry in layout(model))


def stacked_key(key: str) -> tuple[str, int] | None:
    """A main layer's key in the layer-stacked form: (key without the layer number, layer).

    Upstream stacks the layers of a homogeneous model along a leading axis
    (`decoder.layers.self_attention…`); None for a key that is not a main layer's.
    """
    prefix = "decoder.layers."
    if not key.startswith(prefix):
        return None
    number, _, rest = key.removeprefix(prefix).partition(".")
    return prefix + rest, int(number)


def _scopes(model: ModelConfig) -> Iterator[tuple[str, str, str, int | None]]:
    """(scope, Hugging Face prefix, key prefix, expert) of every part of the model, in order."""
    yield "model", "", "", None
    if not model.share_embeddings_and_output_weights:
        yield "untied", "", "", None
    for layer, is_moe in enumerate(model.moe_layer_freq):
        yield from _layer_scopes(
            model, f"model.layers.{layer}.", f"decoder.layers.{layer}.", bool(is_moe)
        )
    for depth in range(model.mtp_num_layers or 0):
        hf, key = f"model.layers.{model.num_layers + depth}.", f"mtp.layers.{depth}."
        yield "mtp", hf, key, None
        yield from _layer_scopes(model, hf, key + "transformer_layer.", model.mtp_is_moe)


def _layer_scopes(
    model: ModelConfig, hf: str, key: str, is_moe: bool
) -> Iterator[tuple[str, str, str, int | None]]:
    yield "layer", hf, key, None
    yield "q_direct" if model.q_lora_rank is None else "q_latent", hf, key, None
    if not is_moe:
        yield "dense", hf, key, None
        return
    yield "moe", hf, key, None
    if model.moe_router_enable_expert_bias:
        yield "bias", hf, key, None
    for expert in range(model.num_moe_experts):
        yield "expert", hf, key, expert
    if model.moe_shared_expert_intermediate_size:
        yield "shared", hf, key, None


def _sizes(model: ModelConfig) -> dict[str, int | None]:
    """Lengths of the axes that the table's shapes name."""
    heads, rope = model.num_attention_heads, model.qk_pos_emb_head_dim
    return {
        "vocab": model.vocab_size,
        "hidden": model.hidden_size,
        "2_hidden": 2 * model.hidden_size,
        "q_rank": model.q_lora_rank,
        "q_out": heads * (model.qk_head_dim + rope),
        "kv_rank": model.kv_lora_rank,
        "kv_in": model.kv_lora_rank + rope,
        "kv_out": heads * (model.qk_head_dim + model.v_head_dim),
        "o_in": heads * model.v_head_dim,
        "ffn": model.ffn_hidden_size,
        "experts": model.num_moe_experts,
        "expert_ffn": model.moe_ffn_hidden_size,
        "shared_ffn": model.moe_shared_expert_intermediate_size,
    }


def _key_of_copy(original: str) -> str:
    return next(row.key for row in TABLE if row.hf == original)
