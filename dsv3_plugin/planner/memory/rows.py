"""Rows of the tables of activations: what is kept of a token, in symbols, and when.

Symbols as in DeepSeek-V3's report (arXiv 2412.19437, section 2.1), of one rank: n heads of width
d_h, with d_R rotary ones more, values d_v; latents d_c and d_q; s tokens of a sequence.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from dsv3_plugin.planner.setting import Setting


@dataclass(frozen=True)
class Symbols:
    """Widths on one rank.

    Attributes:
        s, h: tokens of a sequence; hidden size.
        g: groups of heads that attend one after the other, where ranks share a sequence.
        n, d_h, d_R, d_v: heads of this rank; width without positions, rotary width, of values.
        d_c, d_q: ranks of the KV latent and of the Q latent (0: there is none).
        f, f_s, f_e: inner widths of dense layers, shared experts and one routed expert.
        k, E: experts of a token, and all of a layer.
        V: vocabulary entries of this rank.
    """

    s: int
    h: int
    g: int
    n: int
    d_h: int
    d_R: int
    d_v: int
    d_c: int
    d_q: int
    f: int
    f_s: int
    f_e: int
    k: int
    E: int
    V: int


@cache
def symbols_of(setting: Setting) -> Symbols:
    model, t = setting.model, setting.tensor
    return Symbols(
        s=setting.seq_length,
        h=model.hidden_size,
        g=setting.head_groups,
        n=model.num_attention_heads // t,
        d_h=model.qk_head_dim,
        d_R=model.qk_pos_emb_head_dim,
        d_v=model.v_head_dim,
        d_c=model.kv_lora_rank,
        d_q=model.q_lora_rank or 0,
        f=model.ffn_hidden_size // t,
        f_s=(model.moe_shared_expert_intermediate_size or 0) // t,
        f_e=model.moe_ffn_hidden_size or 0,
        k=model.moe_router_topk or 0,
        E=model.num_moe_experts or 0,
        V=model.vocab_size // t,
    )


Of = Literal["token", "split", "sequence", "row", "layer"]
"""A token of the micro-batch; one of those that sequence parallelism leaves this rank; one of those
of all ranks that share the sequence; a row of the rank's routed experts; the layer itself."""

Width = Literal["x", "q"] | int
"""Bytes of an element: x an activation's; q an operand's, quantised in FP8 training, with its
scales; or a number."""


def _always(setting: Setting) -> bool:
    return True


def whole(setting: Setting) -> bool:
    """Whether a rank has whole sequences."""
    return setting.context == 1


def shared(setting: Setting) -> bool:
    """Whether ranks share a sequence, and gather its latents."""
    return setting.context > 1


def gathers_shared(setting: Setting) -> bool:
    """Whether the shared expert is given all tokens of tensor-parallel ranks, gathered before it.

    So are its parts that compute while tokens travel (upstream's `SharedExpertMLP.pre_forward_comm`
    and `post_forward_comm`); otherwise its products gather for themselves, and keep their own.
    """
    return setting.tensor > 1 and setting.hides_shared_expert


def shared_takes_its_own(setting: Setting) -> bool:
    """Whether it is given the rank's own tokens."""
    return not gathers_shared(setting)


@dataclass(frozen=True)
class Row:
    """One tensor that a layer keeps of a micro-batch.

    Attributes:
        name: what it is.
        of: what there is one of it for.
        elements: how many.
        width: bytes of each.
        unless: recomputed parts (the recipe's names), any of which makes it not kept.
        when: of which settings it is true.
    """

    name: str
    of: Of
    elements: Callable[[Symbols], float]
    width: Width
    unless: frozenset[str]
    when: Callable[[Setting], bool]


def row(
    name: str,
    of: Of,
    elements: Callable[[Symbols], float],
    width: Width = "x",
    unless: str = "",
    when: Callable[[Setting], bool] = _always,
) -> Row:
    """A row, its recomputed parts in one text."""
    return Row(name, of, elements, width, frozenset(unless.split()), when)


A_GROUP_FORWARD = (
    row("keys and values of a group, before and after they are laid out", "sequence",
        lambda z: z.n / z.g * (2 * z.d_h + z.d_R + 2 * z.d_v), when=shared),
    row("output of the heads, put together", "token", lambda z: z.n * z.d_v, when=shared),
)  # fmt: skip

A_GROUP_BACKWARD = (
    row("output of the heads, put together", "token", lambda z: z.n * z.d_v, when=shared),
    row("gradients of queries", "token", lambda z: z.n * (z.d_h + z.d_R), when=shared),
    row("a group's keys and values, and their gradients", "sequence",
        lambda z: 3 * z.n / z.g * (z.d_h + z.d_R + z.d_v), when=shared),
    row("gradient of the latents", "sequence", lambda z: 2 * (z.d_c + z.d_R), when=shared),
)  # fmt: skip
"""What attention works with in groups of heads (`model/latent_context.py`), with both backends."""


def bytes_of(setting: Setting, rows: Iterable[Row], dropped: bool = False) -> float:
    """Of one micro-batch: of the rows that are kept, or of those that are recomputed."""
    symbols = symbols_of(setting)
    return sum(
        row.elements(symbols) * _number(setting, row.of) * _width(setting, row.width)
        for row in rows
        if bool(row.unless & setting.recompute) is dropped and row.when(setting)
    )


def _number(setting: Setting, of: Of) -> float:
    match of:
        case "token":
            return setting.tokens
        case "split":
            return setting.tokens_split
        case "sequence":
            return setting.tokens * setting.context
        case "row":
            return setting.routed_rows
        case "layer":
            return 1


_QUANTISED = {
    "blockwise": 1 + 4 / 128,
    "mxfp8": 1 + 1 / 32,
    "tensorwise": 1.0,
    "delayed": 1.0,
}
"""Bytes of a value with its share of a scale: FP32 for 128, a byte for 32, or one for all."""


def _width(setting: Setting, width: Width) -> float:
    if width == "x" or (width == "q" and setting.fp8 is None):
        return setting.width
    return _QUANTISED[setting.fp8 or "blockwise"] if width == "q" else width
