"""What a rank computes, moves and sends for one micro-batch, layer kind by layer kind.

Each layer is three lists of operations: its forward pass, the half of its backward that gives the
gradient of its input, and the half that gives the gradients of its weights. An operation is a
matrix product, attention, a kernel that only moves bytes, or a message; what it takes on a device
is said by `kernels.py`. Whoever counts kernels, bytes and messages of a real step can hold them
against these lists, name by name.

Symbols as in the report (arXiv 2412.19437, section 2.1): h hidden size, T tokens of a micro-batch
on a rank, k experts of a token. Sizes are after tensor, context and expert parallelism.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from dsv3_plugin.planner.counts import Kind
from dsv3_plugin.planner.plan import TimePart
from dsv3_plugin.planner.setting import Format, Setting
from dsv3_plugin.planner.time.routing import tokens_sent

LinkName = Literal["nvlink", "network"]


@dataclass(frozen=True)
class Gemm:
    """`groups` matrix products [rows, depth] x [depth, columns], rows counted over all groups."""

    name: str
    rows: float
    columns: int
    depth: float
    format: Format
    groups: int = 1
    part: TimePart = "gemm"

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.columns * self.depth


@dataclass(frozen=True)
class Attention:
    """Causal core attention; flops are those of the half of the square that is not masked."""

    name: str
    flops: float
    seq_length: int
    backward: bool
    part: TimePart = "attention"


@dataclass(frozen=True)
class Move:
    """Kernels that only read and write memory, together."""

    name: str
    bytes: float
    part: TimePart = "elementwise"


@dataclass(frozen=True)
class Message:
    """Bytes that a rank sends over a link, in `count` exchanges."""

    name: str
    bytes: float
    link: LinkName
    part: TimePart
    count: int = 1


Operation = Gemm | Attention | Move | Message


@dataclass
class Passes:
    """The operations of a layer in the order of its forward pass.

    Attributes:
        forward: forward pass.
        input: backward, up to the gradient of the layer's input; what is recomputed comes first.
        weight: backward, the gradients of the weights.
    """

    forward: list[Operation] = field(default_factory=list)
    input: list[Operation] = field(default_factory=list)
    weight: list[Operation] = field(default_factory=list)

    def add(self, other: "Passes", *, recomputed: bool = False) -> "Passes":
        """Append another part's operations; `recomputed` runs its forward once more."""
        self.forward += other.forward
        if recomputed:
            self.input += other.forward
        self.input += other.input
        self.weight += other.weight
        return self

    def __iter__(self) -> Iterator[Operation]:
        yield from (*self.forward, *self.input, *self.weight)


@lru_cache(maxsize=4096)
def passes(setting: Setting, kind: Kind) -> Passes:
    """What one layer of a kind takes; the MTP layer without the head, which the last stage runs."""
    match kind:
        case "embedding":
            return _embedding(setting)
        case "head":
            return _head(setting)
        case "mtp":
            inner: Kind = "moe" if setting.model.mtp_is_moe else "dense"
            return _mtp_entry(setting).add(_decoder(setting, inner))
        case _:
            return _decoder(setting, kind)


@lru_cache(maxsize=4096)
def shared_expert(setting: Setting) -> Passes:
    """The shared expert's part of a MoE layer, which may compute while tokens travel."""
    width = setting.model.moe_shared_expert_intermediate_size or 0
    if not width:
        return Passes()
    return _swiglu_mlp(setting, "shared", setting.tokens, width // setting.tensor)


def _decoder(setting: Setting, kind: Kind) -> Passes:
    again = setting.recompute
    layer = Passes()
    layer.add(_norm(setting, "input_norm"), recomputed="norms" in again)
    layer.add(_attention(setting))
    layer.add(_residual(setting))
    layer.add(_norm(setting, "pre_mlp_norm"), recomputed="norms" in again)
    if kind == "moe":
        layer.add(_moe(setting), recomputed="moe" in again)
    else:
        dense = _swiglu_mlp(
            setting, "mlp", setting.tokens, setting.model.ffn_hidden_size // setting.tensor
        )
        layer.add(dense, recomputed="mlp" in again)
        layer.add(_tensor_parallel(setting, "mlp"))
    return layer.add(_residual(setting))


def _attention(setting: Setting) -> Passes:
    """Multi-head latent attention (section 2.1.1)."""
    model, tokens, again = setting.model, setting.tokens, setting.recompute
    heads = model.num_attention_heads // setting.tensor
    query = model.qk_head_dim + model.qk_pos_emb_head_dim
    h = model.hidden_size
    part = _tensor_parallel(setting, "attention")
    up = Passes()
    if model.q_lora_rank is None:
        part.add(_linear(setting, "q_proj", tokens, h, heads * query))
    else:
        # The down-projections are whole on every tensor-parallel rank.
        part.add(_linear(setting, "q_down", setting.tokens_split, h, model.q_lora_rank))
        part.add(_norm(setting, "q_norm", model.q_lora_rank), recomputed="norms" in again)
        up.add(_linear(setting, "q_up", tokens, model.q_lora_rank, heads * query))
    latent = model.kv_lora_rank + model.qk_pos_emb_head_dim
    part.add(_linear(setting, "kv_down", setting.tokens_split, h, latent))
    part.add(_norm(setting, "kv_norm", model.kv_lora_rank), recomputed="norms" in again)
    key_value = heads * (model.qk_head_dim + model.v_head_dim)
    # Where ranks share a sequence each makes keys and values of all of it, in groups of heads, in
    # the training's dtype, and once more in the backward (`model/latent_context.py`).
    shared = setting.context > 1
    every, format = tokens * setting.context, setting.dtype if shared else None
    keys = _linear(setting, "kv_up", every, model.kv_lora_rank, key_value, format)
    # Queries are turned in place; keys are put together from their two parts.
    turned = Move("rope", tokens * heads * 2 * query * setting.width)
    laid = Move("rope", every * heads * (query + model.qk_head_dim) * setting.width)
    up.add(Passes([turned], [turned]))
    keys.add(Passes([laid], [laid]))
    if shared:
        part.add(_latents(setting), recomputed="mla_up_proj" in again)
    else:
        up.add(keys)
    part.add(up, recomputed="mla_up_proj" in again)
    if shared:
        part.add(keys, recomputed=True)
    part.add(_core_attention(setting, heads), recomputed="core_attn" in again)
    return part.add(_linear(setting, "o_proj", tokens, heads * model.v_head_dim, h))


def _core_attention(setting: Setting, heads: int) -> Passes:
    model, tokens, length = setting.model, setting.tokens, setting.seq_length
    query = model.qk_head_dim + model.qk_pos_emb_head_dim
    square = tokens * length * heads  # multiply-adds of half the square, times 2 operations
    return Passes(
        [Attention("core", square * (query + model.v_head_dim), length, backward=False)],
        # Scores once more, then the gradients of values, scores, queries and keys.
        [Attention("core", square * (3 * query + 2 * model.v_head_dim), length, backward=True)],
    )


def _latents(setting: Setting) -> Passes:
    """What ranks that share a sequence tell each other: latents, and the sum of their gradient.

    Both in the order of ranks and in that of the sequence, which is a copy.
    """
    model, ranks = setting.model, setting.context
    row = (model.kv_lora_rank + model.qk_pos_emb_head_dim) * setting.width
    link: LinkName = _link(setting, setting.tensor * ranks)
    sent = (ranks - 1) * setting.tokens * row
    message = Message("latents", sent, link, "context_parallel", ranks - 1)
    ordered = Move("latents", 2 * ranks * setting.tokens * row)
    return Passes([message, ordered], [ordered, message])


def _moe(setting: Setting) -> Passes:
    """Router, dispatch, experts, combine (section 2.1.2)."""
    model, tokens, again = setting.model, setting.tokens_split, setting.recompute
    h, experts = model.hidden_size, model.num_moe_experts or 0
    rows, width = setting.routed_rows, setting.width
    # TE multiplies in the training's dtype and gives FP32 scores; torch multiplies in FP32.
    format = "fp32" if setting.backend == "local" else setting.dtype
    gate = _linear(setting, "router", tokens, h, experts, format)
    scores = Move("routing", _routing_bytes(setting) * tokens * experts)
    part = Passes([*gate.forward, scores], [scores, *gate.input], gate.weight)

    leaves = Move("permute", (tokens + 2 * rows) * h * width)
    returns = Move("unpermute", (2 * rows + tokens) * h * width)
    out, back = _dispatch(setting)
    part.add(Passes([leaves, *out], [*back, leaves]))
    mlp = _swiglu_mlp(setting, "experts", rows, model.moe_ffn_hidden_size or 0)
    part.add(mlp)
    part.add(Passes([*back, returns], [returns, *out]))
    if model.moe_shared_expert_intermediate_size:
        part.add(shared_expert(setting), recomputed="shared_experts" in again)
        part.add(_tensor_parallel(setting, "shared"))
        part.add(_residual(setting))
    return part


def _routing_bytes(setting: Setting) -> float:
    """Read and written of a token and expert from logits to weights, and as much back."""
    if not setting.fused_router:
        # Scores, biased scores, groups, the choice and the gates, each a kernel or two.
        return 20.0 * 4
    # Scores in, weights and scores out in FP32, and the map (TE, pytorch/router.py); the scores of
    # the balance loss are another such kernel.
    kernel = 4 + 4 + 4 + 1
    return kernel * (2 if setting.model.moe_router_load_balancing_type != "none" else 1)


def _dispatch(setting: Setting) -> tuple[list[Operation], list[Operation]]:
    """The messages of tokens to their experts, and of results back, with the wire's own passes."""
    if setting.expert == 1:
        return [], []
    h = setting.model.hidden_size
    sent = tokens_sent(setting)
    wire = 1 + 4 / 128 if setting.wire == "fp8" else setting.width
    tokens = setting.tokens_split

    def messages(name: str, network_bytes: float, nvlink_bytes: float) -> list[Operation]:
        found: list[Operation] = []
        if sent.network:
            found.append(
                Message(name, tokens * sent.network * network_bytes, "network", "dispatch_network")
            )
        if sent.nvlink:
            found.append(
                Message(name, tokens * sent.nvlink * nvlink_bytes, "nvlink", "dispatch_nvlink")
            )
        return found

    out = messages("dispatch", h * wire, h * wire)
    back = messages("combine", h * setting.width, h * setting.width)
    if setting.dispatcher == "two_hop":
        # Copies into the buffers of either hop, and out of them.
        copies = 2.0 * h * setting.width * tokens * (sent.network + sent.nvlink)
        out = [Move("two_hop_copies", copies), *out]
        back = [*back, Move("two_hop_copies", copies)]
        if setting.wire == "fp8":
            # Plain torch operations: 46 bytes an element to encode, 23 to decode, as counted
            # under FakeTensorMode.
            arrived = tokens * (sent.network + sent.nvlink)
            out = [
                Move("wire_encode", 46.0 * tokens * h, "quantise"),
                *out,
                Move("wire_decode", 23.0 * arrived * h, "quantise"),
            ]
    return out, back


def _swiglu_mlp(setting: Setting, name: str, rows: float, inner: int) -> Passes:
    """Two linears with SwiGLU between them; of routed experts, all that a rank holds."""
    h = setting.model.hidden_size
    groups = max(setting.local_experts, 1) if name == "experts" else 1
    mlp = _linear(setting, f"{name}_fc1", rows, h, 2 * inner, groups=groups)
    act = Passes(
        [Move(f"{name}_swiglu", 3 * rows * inner * setting.width)],
        [Move(f"{name}_swiglu", 5 * rows * inner * setting.width)],
    )
    again = name == "experts" and "moe_act" in setting.recompute
    if setting.fp8_swiglu_input:  # two values of each row and inner width, cast and cast back
        cast = Move(f"{name}_swiglu_input", 2 * rows * inner * (setting.width + 1))
        mlp.add(Passes([cast], [cast] * (1 + again)))
    mlp.add(act, recomputed=again)
    return mlp.add(_linear(setting, f"{name}_fc2", rows, inner, h, groups=groups))


def _linear(
    setting: Setting,
    name: str,
    rows: float,
    inner: int,
    outer: int,
    format: Format | None = None,
    groups: int = 1,
) -> Passes:
    """y [rows, outer] = x [rows, inner] Wᵀ: its three products, and what FP8 quantises for them."""
    format = format or setting.matmul
    forward: list[Operation] = [Gemm(name, rows, outer, inner, format, groups)]
    input: list[Operation] = [Gemm(name, rows, inner, outer, format, groups)]
    weight: list[Operation] = [
        Gemm(name, groups * outer, inner, rows / groups, format, groups),
        # FP32 gradients are added up in place.
        Move("accumulate", 8.0 * groups * outer * inner),
    ]
    if format == "fp8":
        # Read in BF16, written once by rows and once by columns, for the weight gradient.
        forward.insert(0, Move(f"{name}_quantise", 4.0 * rows * inner, "quantise"))
        input.insert(0, Move(f"{name}_quantise", 4.0 * rows * outer, "quantise"))
    return Passes(forward, input, weight)


def _norm(setting: Setting, name: str, width: int | None = None) -> Passes:
    size = setting.tokens_split * (width or setting.model.hidden_size) * setting.width
    return Passes([Move(name, 2 * size)], [Move(name, 3 * size)])


def _residual(setting: Setting) -> Passes:
    size = 3 * setting.tokens_split * setting.model.hidden_size * setting.width
    return Passes([Move("residual", size)], [Move("residual", size)])


def _embedding(setting: Setting) -> Passes:
    size = setting.tokens * setting.model.hidden_size * setting.width
    return Passes([Move("embedding", 2 * size)], [], [Move("embedding", 6 * size)])


def _head(setting: Setting) -> Passes:
    """Final norm, output head and loss, once for the model and once for each MTP depth."""
    model = setting.model
    columns = model.vocab_size // setting.tensor
    logits = setting.tokens * columns
    # In steps, FP32: cast, maximum, subtraction, exponential, sum and division; then the gradient
    # from the softmax kept. Compiled (fused_cross_entropy.py): cast and maximum are one pass,
    # subtraction, exponential and sum another, division a third; for the gradient the softmax is
    # copied, and then multiplied and cast in one pass.
    forward, backward = (2 + 4 + 8 + 8, 8 + 10) if setting.fused_loss else (38, 22)
    one = _norm(setting, "final_norm")
    one.add(_linear(setting, "head", setting.tokens, model.hidden_size, columns, setting.dtype))
    one.add(Passes([Move("loss", forward * logits)], [Move("loss", backward * logits)]))
    one.add(_tensor_parallel(setting, "head"))
    every = Passes()
    for _ in range(1 + (model.mtp_num_layers or 0)):
        every.add(one)
    return every


def _mtp_entry(setting: Setting) -> Passes:
    """Two norms, the concatenation and its projection (section 2.2, equation 21)."""
    h = setting.model.hidden_size
    entry = _embedding(setting).add(_norm(setting, "enorm")).add(_norm(setting, "hnorm"))
    size = 4 * setting.tokens_split * h * setting.width
    entry.add(Passes([Move("concatenate", size)], [Move("concatenate", size)]))
    return entry.add(_linear(setting, "eh_proj", setting.tokens, 2 * h, h // setting.tensor))


def _tensor_parallel(setting: Setting, name: str) -> Passes:
    """Sequence parallelism: gather before a column-parallel linear, scatter after a row-parallel
    one, the same in reverse, and the input gathered once more for the weight gradient."""
    size = setting.tensor
    if size == 1:
        return Passes()
    sent = setting.tokens * setting.model.hidden_size * setting.width * (size - 1) / size
    link = _link(setting, size)
    message = Message(f"{name}_gather_scatter", 2 * sent, link, "tensor_parallel", 2)
    again = Message(f"{name}_gather", sent, link, "tensor_parallel")
    return Passes([message], [message], [again])


def _link(setting: Setting, ranks: int) -> LinkName:
    """What connects so many neighbouring ranks."""
    return "nvlink" if ranks <= setting.nvlink_domain else "network"
