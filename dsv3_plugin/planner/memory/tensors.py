"""The parameters of a chunk of the model on one rank, in the order in which upstream lists them.

Upstream lays parameters out one after the other, padded where the optimizer is sharded, so it takes
more than their sum to know a rank's bytes: sizes, order, and which data-parallel group each belongs
to.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from dsv3_plugin.planner.counts import Kind
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage


@dataclass(frozen=True)
class Tensor:
    """A parameter as one rank holds it.

    Attributes:
        name: upstream's, without the number of its layer.
        rows, columns: a matrix y = W x has a row for each of y; a vector has one column.
        number: how many alike follow each other (experts).
        routed: of routed experts, whose gradients are summed over fewer ranks.
        fp8: multiplied in FP8 where the training is.
        own_bucket: upstream puts it into a bucket of its own, because another rank holds a copy.
    """

    name: str
    rows: int
    columns: int = 1
    number: int = 1
    routed: bool = False
    fp8: bool = False
    own_bucket: bool = False

    @property
    def values(self) -> int:
        """Of one of them."""
        return self.rows * self.columns


def rank_chunks(setting: Setting, stages: tuple[Stage, ...]) -> tuple[tuple[Tensor, ...], ...]:
    """The parameters of each of a rank's chunks.

    Multi-token prediction needs the embedding: where a chunk of the same rank has it, they share
    one parameter, else upstream keeps a second one beside the MTP layers.

    Args:
        setting: how the model is divided.
        stages: the rank's chunks, in its order.
    """
    shared = any(stage.embedding for stage in stages)
    return tuple(
        _chunk(setting, stage, index == 0, copy=bool(stage.mtp) and not shared)
        for index, stage in enumerate(stages)
    )


@cache
def _chunk(setting: Setting, stage: Stage, first: bool, copy: bool) -> tuple[Tensor, ...]:
    model = setting.model
    table = model.vocab_size // setting.tensor, model.hidden_size
    tied = model.share_embeddings_and_output_weights
    # Upstream's `shared_embedding` mark; it is set in the first chunk alone.
    copied = setting.pipeline > 1 and (tied or bool(model.mtp_num_layers))

    def tensors() -> Iterator[Tensor]:
        if stage.embedding or copy:
            alone = copied and (copy or (first and not stage.head))
            yield Tensor("embedding", *table, own_bucket=alone)
        for kind in ("dense", "moe"):
            for _ in range(stage.kinds.get(kind, 0)):
                yield from layer_tensors(setting, kind)
        if stage.head:
            yield Tensor("final_layernorm", model.hidden_size)
        for _ in range(stage.mtp):
            yield from layer_tensors(setting, "mtp")
        if stage.head and not (tied and stage.embedding):
            yield Tensor("output_layer", *table, own_bucket=copied and tied and not stage.mtp)

    return tuple(tensors())


@cache
def layer_tensors(setting: Setting, kind: Kind) -> tuple[Tensor, ...]:
    """The parameters of one transformer layer: `dense`, `moe` or `mtp`."""
    model = setting.model
    if kind == "mtp":
        h = model.hidden_size
        inner = layer_tensors(setting, "moe" if model.mtp_is_moe else "dense")
        return (
            Tensor("enorm", h),
            Tensor("hnorm", h),
            Tensor("eh_proj", h // setting.tensor, 2 * h, fp8=True),
            *inner,
            Tensor("final_layernorm", h),
        )
    block = _experts(setting) if kind == "moe" else _feed_forward(setting)
    return (*_attention(setting), *block)


def _attention(setting: Setting) -> Iterator[Tensor]:
    """Multi-head latent attention: up-projections divided by heads, down-projections by backend.

    Transformer Engine's down-projections are the same on every tensor-parallel rank; the local
    backend divides their outputs. Norms come before the up-projections in TE (fused), after them in
    the local backend.
    """
    model, t = setting.model, setting.tensor
    h, heads = model.hidden_size, model.num_attention_heads // t
    q, kv = model.q_lora_rank, model.kv_lora_rank
    te = setting.backend == "transformer_engine"
    down = 1 if te else t
    query = heads * (model.qk_head_dim + model.qk_pos_emb_head_dim)
    key_value = heads * (model.qk_head_dim + model.v_head_dim)
    latent_norms = [Tensor("q_layernorm", q)] if q else []
    latent_norms.append(Tensor("kv_layernorm", kv))

    yield Tensor("input_layernorm", h)
    yield Tensor("linear_proj", h, heads * model.v_head_dim, fp8=True)
    if q is None:
        yield Tensor("linear_q_proj", query, h, fp8=True)
    else:
        yield Tensor("linear_q_down_proj", q // down, h, fp8=True)
        if te:
            yield latent_norms.pop(0)
        yield Tensor("linear_q_up_proj", query, q, fp8=True)
    yield Tensor("linear_kv_down_proj", (kv + model.qk_pos_emb_head_dim) // down, h, fp8=True)
    if te:
        yield latent_norms.pop(0)
    # Where ranks share a sequence, its rows are multiplied by groups of heads, in BF16.
    yield Tensor("linear_kv_up_proj", key_value, kv, fp8=setting.context == 1)
    yield from latent_norms
    yield Tensor("pre_mlp_layernorm", h)


def _feed_forward(setting: Setting) -> Iterator[Tensor]:
    h, ffn = setting.model.hidden_size, setting.model.ffn_hidden_size // setting.tensor
    yield Tensor("mlp.linear_fc1", 2 * ffn, h, fp8=True)
    yield Tensor("mlp.linear_fc2", h, ffn, fp8=True)


def _experts(setting: Setting) -> Iterator[Tensor]:
    """Router (on every rank), this rank's routed experts (whole), shared experts (divided)."""
    model = setting.model
    h, ffn, local = model.hidden_size, model.moe_ffn_hidden_size, setting.local_experts
    yield Tensor("router", model.num_moe_experts, h)
    if setting.backend == "local":  # all of them are one parameter, and always routed
        yield Tensor("experts.weight1", local * 2 * ffn, h, routed=True)
        yield Tensor("experts.weight2", local * h, ffn, routed=True)
    else:
        # Upstream tells them from the rest where they are divided otherwise.
        routed = setting.expert > 1 or setting.tensor > 1
        yield Tensor("experts.linear_fc1", 2 * ffn, h, local, routed, fp8=True)
        yield Tensor("experts.linear_fc2", h, ffn, local, routed, fp8=True)
    if shared := (model.moe_shared_expert_intermediate_size or 0) // setting.tensor:
        yield Tensor("shared_experts.linear_fc1", 2 * shared, h, fp8=True)
        yield Tensor("shared_experts.linear_fc2", h, shared, fp8=True)
