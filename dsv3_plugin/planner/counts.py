"""Exact counts of parameters and floating-point operations, from a model's description alone.

Every later cost (memory, time, money) is built from these. Counts are kept per layer kind and per
component, so that a stage of a pipeline can be priced by the layers it holds.
"""

from dataclasses import dataclass
from typing import Literal

from dsv3_plugin.recipe.model import ModelConfig

Kind = Literal["embedding", "dense", "moe", "mtp", "head"]


@dataclass(frozen=True)
class LayerCount:
    """One layer of a kind, in values by component.

    Attributes:
        kind: embedding; dense and moe layers of the main model; mtp (one depth of multi-token
            prediction, without the shared embedding and head); head (final norm and output).
        number: how many of them the model has.
        parameters: component → values held.
        active: component → values that a token is multiplied with (of the routed experts, the
            top-k chosen ones). Norms and biases are not matrix products, and a lookup in the
            embedding is none; an mtp layer uses the head once more.
    """

    kind: Kind
    number: int
    parameters: dict[str, int]
    active: dict[str, int]

    @property
    def held(self) -> int:
        """Values in one such layer."""
        return sum(self.parameters.values())

    @property
    def used(self) -> int:
        """Weights of one such layer that a token is multiplied with."""
        return sum(self.active.values())


@dataclass(frozen=True)
class ParameterCounts:
    """How many values a model holds and uses.

    Attributes:
        total: values in the model's Hugging Face checkpoint: the main model, its router biases,
            and for every depth of multi-token prediction its layer with a copy of the embedding
            and of the head.
        main: values of the main model, router biases included.
        active: values of the main model that work on one token: all but the embedding table and
            the routed experts not chosen.
        layers: the same per layer kind.
    """

    total: int
    main: int
    active: int
    layers: tuple[LayerCount, ...]

    def layer(self, kind: Kind) -> LayerCount:
        """The count of a kind; raises KeyError where the model has none of it."""
        for layer in self.layers:
            if layer.kind == kind:
                return layer
        raise KeyError(kind)


@dataclass(frozen=True)
class LayerFlops:
    """Floating-point operations of one layer of a kind, forward, per token.

    Attributes:
        matmul: 2 × the layer's active weights.
        attention: scores and their product with the values, half of the square (causal).
    """

    kind: Kind
    number: int
    matmul: int
    attention: int

    @property
    def forward(self) -> int:
        return self.matmul + self.attention

    @property
    def forward_backward(self) -> int:
        """Forward, and a backward of twice that; nothing recomputed."""
        return 3 * self.forward


@dataclass(frozen=True)
class FlopCounts:
    """Floating-point operations per token of a training step, forward and backward.

    Attributes:
        total: multi-token prediction included.
        main: of the main model alone.
        layers: forward operations per layer kind.
    """

    seq_length: int
    total: int
    main: int
    layers: tuple[LayerFlops, ...]


def parameter_counts(model: ModelConfig) -> ParameterCounts:
    """The exact parameter counts of a model."""
    layers = _layers(model)
    embedding = model.vocab_size * model.hidden_size
    held = {layer.kind: layer.number * layer.held for layer in layers}
    mtp = held.pop("mtp", 0)
    main = sum(held.values())
    copies = (model.mtp_num_layers or 0) * 2 * embedding
    if model.share_embeddings_and_output_weights:
        # One tensor is both; the copies beside an MTP layer are one too.
        copies //= 2
    unused = 0
    for layer in layers:
        if layer.kind == "moe":
            experts = layer.parameters["experts"]
            unused += layer.number * (experts - layer.active["experts"])
    lookup = 0 if model.share_embeddings_and_output_weights else embedding
    return ParameterCounts(main + mtp + copies, main, main - unused - lookup, layers)


def flops_per_token(model: ModelConfig, seq_length: int) -> FlopCounts:
    """Operations per token of a training step on sequences of `seq_length` tokens.

    Forward and backward cost 6 operations per active weight; attention costs, per layer and token,
    6 × seq_length/2 × heads × (query width + value width): the causal half of the square. For
    DeepSeek-V3 at 4096 tokens: 250.4 G for the main model, 260.6 G with multi-token prediction.
    """
    heads = model.num_attention_heads
    widths = model.qk_head_dim + model.qk_pos_emb_head_dim + model.v_head_dim
    attention = seq_length * heads * widths
    layers = tuple(
        LayerFlops(
            kind=layer.kind,
            number=layer.number,
            matmul=2 * layer.used,
            attention=attention if layer.kind in ("dense", "moe", "mtp") else 0,
        )
        for layer in parameter_counts(model).layers
    )
    total = sum(layer.number * layer.forward_backward for layer in layers)
    mtp = sum(layer.number * layer.forward_backward for layer in layers if layer.kind == "mtp")
    return FlopCounts(seq_length, total, total - mtp, layers)


def _layers(model: ModelConfig) -> tuple[LayerCount, ...]:
    h = model.hidden_size
    table = model.vocab_size * h
    attention, latent_norms = _attention(model)
    norms = {"norms": 2 * h + latent_norms}
    mlp = 3 * h * model.ffn_hidden_size
    dense = {"attention": attention, "mlp": mlp}
    kinds = {"dense": (dense | norms, dense)}
    if model.moe_layers:
        expert = 3 * h * model.moe_ffn_hidden_size
        moe = {
            "attention": attention,
            "router": h * model.num_moe_experts,
            "shared_experts": 3 * h * (model.moe_shared_expert_intermediate_size or 0),
        }
        bias = model.num_moe_experts if model.moe_router_enable_expert_bias else 0
        held = moe | norms | {"experts": model.num_moe_experts * expert, "router_bias": bias}
        kinds["moe"] = (held, moe | {"experts": model.moe_router_topk * expert})

    tied = model.share_embeddings_and_output_weights
    counts = [LayerCount("embedding", 1, {"embedding": table}, {})]
    for kind, number in (
        ("dense", model.moe_layer_freq.count(0)),
        ("moe", model.moe_layer_freq.count(1)),
    ):
        if number:
            counts.append(LayerCount(kind, number, *kinds[kind]))
    if model.mtp_num_layers:
        held, active = kinds["moe" if model.mtp_is_moe else "dense"]
        projection = {"projection": 2 * h * h}
        # Norms of the embedding, of the hidden state, and before the head.
        held = held | projection | {"norms": held["norms"] + 3 * h}
        active = active | projection | {"head": table}
        counts.append(LayerCount("mtp", model.mtp_num_layers, held, active))
    head = {"norms": h, "head": 0 if tied else table}
    counts.append(LayerCount("head", 1, head, {"head": table}))
    return tuple(counts)


def _attention(model: ModelConfig) -> tuple[int, int]:
    """Values in the projections of one attention, and in the norms of its latents."""
    h, heads = model.hidden_size, model.num_attention_heads
    query = heads * (model.qk_head_dim + model.qk_pos_emb_head_dim)
    key_value = heads * (model.qk_head_dim + model.v_head_dim)
    norms = model.kv_lora_rank
    if model.q_lora_rank is None:
        projections = h * query
    else:
        projections = h * model.q_lora_rank + model.q_lora_rank * query
        norms += model.q_lora_rank
    projections += h * (model.kv_lora_rank + model.qk_pos_emb_head_dim)
    projections += model.kv_lora_rank * key_value
    projections += heads * model.v_head_dim * h
    return projections, norms
