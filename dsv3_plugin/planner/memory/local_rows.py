"""What layers of the local backend keep for the backward, tensor by tensor.

Read off `dsv3_plugin.model` (each `save_for_backward`) and off what torch saves by itself, on a
CPU; tests/planner/memory holds the sums against real steps. KEPT is from a forward to the backward
of the same micro-batch; OWED from the gradient of a layer's input to those of its weights, where a
schedule divides the two (`model/linear.py`): the operands of the products that are still to come.
"""

from dsv3_plugin.planner.memory.rows import (
    A_GROUP_BACKWARD,
    A_GROUP_FORWARD,
    Row,
    gathers_shared,
    row,
    shared,
    whole,
)
from dsv3_plugin.planner.setting import Setting

_QUERY_BLOCK, _LONGEST_KEPT = 32, 1024
"""As in `model/core_attention.py`: queries in a block, and keys up to which probabilities are
kept."""


def _fp32(setting: Setting) -> bool:
    return setting.dtype == "fp32"


def _fp32_or_norms(setting: Setting) -> bool:
    """Whether a norm starts from its input; in BF16 it keeps a copy of it in FP32."""
    return _fp32(setting) or "norms" in setting.recompute


def _bf16(setting: Setting) -> bool:
    return setting.dtype != "fp32"


def _in_blocks(setting: Setting) -> bool:
    return _fp32(setting) and setting.seq_length <= _LONGEST_KEPT


def _in_flash(setting: Setting) -> bool:
    return not _in_blocks(setting)


def _one_rank(setting: Setting) -> bool:
    return setting.dispatcher == "alltoall" and setting.expert == 1 and setting.tensor == 1


def _alltoall(setting: Setting) -> bool:
    return setting.dispatcher == "alltoall" and not _one_rank(setting)


def _two_hop(setting: Setting) -> bool:
    return setting.dispatcher == "two_hop"


def _norm(name: str, width: str, unless: str = "") -> tuple[Row, ...]:
    """What an RMSNorm keeps besides its input and its output; torch's own, in BF16, keeps more."""
    of = "token" if width in ("d_c", "d_q") else "split"

    def elements(symbols: object) -> float:
        return getattr(symbols, width)

    return (
        row(f"{name}: input in FP32", of, elements, 4, unless, _bf16),
        row(f"{name}: normed in FP32", of, elements, 4, unless, _bf16),
        row(f"{name}: 1 / rms", of, lambda z: 1, 4, unless),
    )


_CORE = "core_attn"
_UP = "mla_up_proj"
_MOE = "moe"

ATTENTION = (
    row("input of the layer", "split", lambda z: z.h, when=_fp32_or_norms),
    *_norm("input norm", "h", "norms"),
    row("normed input", "split", lambda z: z.h, unless="norms"),
    row("Q latent", "token", lambda z: z.d_q, when=_fp32),
    row("KV latent, rotary key", "token", lambda z: z.d_c + z.d_R, when=_fp32),
    *_norm("norm of the Q latent", "d_q"),
    *_norm("norm of the KV latent", "d_c"),
    row("normed Q latent", "token", lambda z: z.d_q),
    row("normed KV latent", "token", lambda z: z.d_c, when=whole),
    row("latents and rotated keys", "token", lambda z: z.d_c + z.d_R,
        when=lambda setting: shared(setting) and _UP in setting.recompute),
    row("latents and rotated keys, gathered", "sequence", lambda z: z.d_c + z.d_R, "x", _UP,
        shared),
    row("cos and sin", "token", lambda z: z.d_R),
    row("scaled query", "token", lambda z: z.n * (z.d_h + z.d_R), unless=_CORE, when=_in_blocks),
    row(
        "query", "token", lambda z: z.n * (z.d_h + z.d_R), unless=_UP,
        when=lambda setting: _in_flash(setting) or _CORE in setting.recompute,
    ),
    row("key", "token", lambda z: z.n * (z.d_h + z.d_R), "x", _UP, whole),
    row(
        "value", "token", lambda z: z.n * z.d_v, "x", _UP,
        lambda setting: whole(setting) and (_in_blocks(setting) or _CORE in setting.recompute),
    ),
    row("value, as wide as keys", "sequence", lambda z: z.n * (z.d_h + z.d_R), unless=_CORE,
        when=_in_flash),
    row("output, as wide as keys", "token", lambda z: z.n * (z.d_h + z.d_R), unless=_CORE,
        when=_in_flash),
    row("log of the sum of exponentials", "token", lambda z: z.n, 4, _CORE, _in_flash),
    row("probabilities", "token", lambda z: z.n * (z.s + _QUERY_BLOCK) / 2, unless=_CORE,
        when=_in_blocks),
    row("output of the heads", "token", lambda z: z.n * z.d_v),
    row("after attention", "split", lambda z: z.h, when=_fp32_or_norms),
    *_norm("norm before the block", "h", "norms"),
    row("normed input of the block", "split", lambda z: z.h, unless="norms"),
)  # fmt: skip

DENSE = (
    row("gate and up", "token", lambda z: 2 * z.f, unless="mlp"),
    row("activated", "token", lambda z: z.f, unless="mlp"),
)

MOE = (
    row("scores", "split", lambda z: z.E, 4, _MOE),
    row("scores of the balance loss", "split", lambda z: z.E + 1, 4, _MOE,
        lambda setting: setting.model.moe_router_load_balancing_type != "none"),
    row("chosen experts", "split", lambda z: z.k, 8, _MOE),
    row("their scores, and the sum", "split", lambda z: z.k + 1, 4, _MOE),
    row("shared experts: input, gathered", "token", lambda z: z.h, unless="moe shared_experts",
        when=gathers_shared),
    row("shared experts: gate and up", "token", lambda z: 2 * z.f_s, unless="moe shared_experts"),
    row("shared experts: activated", "token", lambda z: z.f_s, unless="moe shared_experts"),
    row("place and token of each row", "row", lambda z: 3, 8, _MOE, _one_rank),
    row("its number among all scores", "row", lambda z: 1, 8, _MOE, _one_rank),
    row("routing map", "split", lambda z: z.E, 1, _MOE, lambda setting: not _one_rank(setting)),
    row("probabilities of experts", "split", lambda z: z.E, 4, _MOE, _alltoall),
    row("order of the tokens", "split", lambda z: z.E + z.k, 8, _MOE, _alltoall),
    row("rows to other ranks and back", "row", lambda z: 4, 8, _MOE, _two_hop),
    row("source and order of each row", "row", lambda z: 4, 8, _MOE, _two_hop),
    row("rows of the experts", "row", lambda z: z.h, unless=_MOE),
    row("weights of the rows", "row", lambda z: 1, 4, _MOE),
    row("experts: gate and up", "row", lambda z: 2 * z.f_e, unless=_MOE),
)  # fmt: skip

MTP = (
    row("embedding", "split", lambda z: z.h, when=_fp32),
    *_norm("norm of the embedding", "h"),
    *_norm("norm of the hidden state", "h"),
    row("both, side by side", "split", lambda z: 2 * z.h),
    row("tokens, labels and mask, rolled", "token", lambda z: 2.5, 8),
    row("output of the layer", "split", lambda z: z.h, when=_fp32),
    *_norm("final norm", "h"),
)

HEAD = (
    row("output of the last layer", "split", lambda z: z.h, when=_fp32),
    *_norm("final norm", "h"),
    row("normed, for the head", "split", lambda z: z.h),
)

ATTENTION_OWED = (
    row("normed input", "split", lambda z: z.h),
    row("gradient of the Q latent", "token", lambda z: z.d_q),
    row("gradient of the KV latent and the rotary key", "token", lambda z: z.d_c + z.d_R),
    row("normed Q latent", "token", lambda z: z.d_q),
    row("gradient of the queries", "token", lambda z: z.n * (z.d_h + z.d_R)),
    row("normed KV latent", "token", lambda z: z.d_c, when=whole),
    row("gradient of keys and values", "token", lambda z: z.n * (z.d_h + z.d_v), when=whole),
    row(
        "gradient of their projection",
        "layer",
        lambda z: z.n * (z.d_h + z.d_v) * z.d_c,
        when=shared,
    ),
    row("output of the heads", "token", lambda z: z.n * z.d_v),
    row("gradient after attention", "split", lambda z: z.h),
    row("normed input of the block", "split", lambda z: z.h),
    row("gradient of the layer's output", "split", lambda z: z.h),
)

DENSE_OWED = (
    row("gradient of gate and up", "token", lambda z: 2 * z.f),
    row("activated", "token", lambda z: z.f),
)

MOE_OWED = (
    row("shared experts: gradient of gate and up", "token", lambda z: 2 * z.f_s),
    row("shared experts: activated", "token", lambda z: z.f_s),
    row("rows of the experts", "row", lambda z: z.h),
    row("gradient of gate and up", "row", lambda z: 2 * z.f_e),
    row("weighted, activated", "row", lambda z: z.f_e),
    row("gradient of the experts' output", "row", lambda z: z.h),
)

MTP_OWED = (
    row("embedding and hidden state, normed", "split", lambda z: 2 * z.h),
    row("gradient of the layer's input", "split", lambda z: z.h),
)

ATTENTION_FORWARD = (
    row("queries, keys and values before they are laid out", "token",
        lambda z: z.n * (2 * z.d_h + z.d_R + z.d_v), when=whole),
    *A_GROUP_FORWARD,
    row("output of the projection", "split", lambda z: z.h),
)  # fmt: skip

DENSE_FORWARD = (row("output", "split", lambda z: z.h),)

MOE_FORWARD = (
    row("weighted, activated", "row", lambda z: z.f_e),
    row("experts' outputs", "row", lambda z: z.h),
    row("output of the shared experts", "split", lambda z: z.h),
)

ATTENTION_BACKWARD = (
    row("gradients of the residual stream", "split", lambda z: 2 * z.h),
    row("gradient of the heads' output", "token", lambda z: z.n * z.d_v),
    row("gradients of queries, keys and values", "token",
        lambda z: 2 * z.n * (2 * (z.d_h + z.d_R) + z.d_v), when=whole),
    *A_GROUP_BACKWARD,
)  # fmt: skip

DENSE_BACKWARD = (
    row("gradients of the residual stream", "split", lambda z: 2 * z.h),
    row("gradients of activated, gate and up", "token", lambda z: 4 * z.f),
)

MOE_BACKWARD = (
    row("gradients of the residual stream", "split", lambda z: 2 * z.h),
    row("gradients of the rows", "row", lambda z: 2 * z.h),
    row("activated, and their gradients", "row", lambda z: 5 * z.f_e),
)
"""What a block works with beyond what is kept, at its fullest; added up from `model/`."""
