"""What layers of Transformer Engine keep for the backward, tensor by tensor.

Read off TE 2.20.2 (`save_for_backward` of pytorch/module/{linear,layernorm_linear,grouped_linear},
attention/dot_product_attention, permutation.py) and core 0.19.2; tests/rehearsal/te holds the sums
against TE's own layers, run on shapes. In FP8 a linear layer keeps its input quantised along the
columns alone, each its own copy; where upstream sets `save_original_input` (after the core
attention, in shared experts, and before whatever is recomputed; never with delayed scaling) it
keeps the input itself, and that is shared with whoever made it. What is OWED is kept along the
columns alone, because we put it so into TE's queue (`pipeline/split_backward.py`). Angles of the
fused rotation are each module's, not a micro-batch's. The tables' names are those of
`local_rows.py`.
"""

from dsv3_plugin.planner.memory.rows import (
    A_GROUP_BACKWARD,
    A_GROUP_FORWARD,
    gathers_shared,
    row,
    shared,
    shared_takes_its_own,
    whole,
)
from dsv3_plugin.planner.setting import Setting


def _fp8(setting: Setting) -> bool:
    return setting.fp8 is not None


def _plain(setting: Setting) -> bool:
    return setting.fp8 is None


def _delayed(setting: Setting) -> bool:
    return setting.fp8 == "delayed"


def _swiglu_in_fp8(setting: Setting) -> bool:
    return setting.fp8_swiglu_input


def _swiglu_as_computed(setting: Setting) -> bool:
    return not setting.fp8_swiglu_input


def _upstreams(setting: Setting) -> bool:
    """Whether upstream's permutation kernels sort the tokens."""
    return setting.dispatcher != "two_hop"


def _two_hop(setting: Setting) -> bool:
    return setting.dispatcher == "two_hop"


def _balanced(setting: Setting) -> bool:
    return setting.model.moe_router_load_balancing_type != "none"


def _as_wide_as_keys(setting: Setting) -> bool:
    """Whether values are padded: upstream does for packs, since not every kernel takes others."""
    return setting.packed and whole(setting)


def _value_itself(setting: Setting) -> bool:
    """Whether the values are kept as they are: core attention keeps what it was given."""
    return whole(setting) and (not setting.packed or _CORE in setting.recompute)


_CORE = "core_attn"
_UP = "mla_up_proj"
_MOE = "moe"

ATTENTION = (
    row("input of the layer", "split", lambda z: z.h),
    row("1 / rms of the input norm", "split", lambda z: 1, 4, "norms"),
    row("normed input", "split", lambda z: z.h, unless="norms", when=_plain),
    row("normed input, of the KV down-projection", "split", lambda z: z.h, "q", "norms", _fp8),
    row("normed input, of the Q down-projection", "split", lambda z: z.h, "q", "norms", _fp8),
    row("Q latent", "split", lambda z: z.d_q),
    row("KV latent", "split", lambda z: z.d_c),
    row("rotary key", "split", lambda z: z.d_R,
        when=lambda setting: _UP in setting.recompute and whole(setting)),
    row("1 / rms of the Q latent's norm", "split", lambda z: 1, 4, _UP),
    row("1 / rms of the KV latent's norm", "split", lambda z: 1, 4, _UP, whole),
    row("1 / rms of the KV latent's norm, before it is gathered", "split", lambda z: 1, 4,
        when=shared),
    row("normed Q latent", "split", lambda z: z.d_q, "q", _UP),
    row("normed KV latent", "split", lambda z: z.d_c, "q", _UP, whole),
    row("latents and rotated keys", "token", lambda z: z.d_c + z.d_R,
        when=lambda setting: shared(setting) and _UP in setting.recompute),
    row("latents and rotated keys, gathered", "sequence", lambda z: z.d_c + z.d_R, "x", _UP,
        shared),
    row("cos and sin", "token", lambda z: z.d_R, when=shared),
    row("query", "token", lambda z: z.n * (z.d_h + z.d_R), unless=_UP),
    row("key", "token", lambda z: z.n * (z.d_h + z.d_R), "x", _UP, whole),
    row("value", "token", lambda z: z.n * z.d_v, "x", _UP, _value_itself),
    row("value, as wide as keys", "token", lambda z: z.n * (z.d_h + z.d_R), "x", _CORE,
        _as_wide_as_keys),
    row("output of the heads", "token", lambda z: z.n * z.d_v),
    row("output of the heads, as wide as keys", "token", lambda z: z.n * (z.d_h + z.d_R), "x",
        _CORE, _as_wide_as_keys),
    row("output of the heads, for the projection", "token", lambda z: z.n * z.d_v, "q",
        when=_delayed),
    row("log of the sum of exponentials", "token", lambda z: z.n, 4, _CORE),
    row("after attention", "split", lambda z: z.h),
)  # fmt: skip

DENSE = (
    row("1 / rms of the norm before the block", "split", lambda z: 1, 4),
    row("normed input of the block", "split", lambda z: z.h, "q", "mlp"),
    row("gate and up", "token", lambda z: 2 * z.f, "x", "mlp", _swiglu_as_computed),
    row("gate and up, in FP8", "token", lambda z: 2 * z.f, 1, "mlp", _swiglu_in_fp8),
    row("activated", "token", lambda z: z.f, "q", "mlp"),
)
"""The norm is fused into the first product, and is not recomputed by itself."""

MOE = (
    row("1 / rms of the norm before the block", "split", lambda z: 1, 4, "norms"),
    row("normed input of the block", "split", lambda z: z.h, unless="norms"),
    row("scores", "split", lambda z: z.E, 4, _MOE),
    row("scores of the balance loss", "split", lambda z: z.E + 1, 4, _MOE, _balanced),
    row("the same, without padding's", "split", lambda z: z.E, 4, _MOE,
        lambda setting: _balanced(setting) and setting.packed),
    row("sample of each token", "split", lambda z: 1, 8, _MOE,
        lambda setting: _balanced(setting) and setting.packed),
    row(
        "chosen experts, their scores, and the sum", "split", lambda z: 3 * z.k + 1, 4, _MOE,
        lambda setting: not setting.fused_router,
    ),
    row("routing map", "split", lambda z: z.E, 1, _MOE),
    row("probabilities of experts", "split", lambda z: z.E, 4, _MOE, _upstreams),
    row("map of the permutation", "split", lambda z: 2 * z.E + 1, 4, _MOE, _upstreams),
    row("maps of the rows sorted by expert, and back", "row", lambda z: 2, 4, _MOE, _upstreams),
    row("rows to other ranks and back, and their order", "row", lambda z: 8, 8, _MOE, _two_hop),
    row("shared experts: input", "split", lambda z: z.h, "q", "moe shared_experts",
        lambda setting: _delayed(setting) and shared_takes_its_own(setting)),
    row("shared experts: input, gathered", "token", lambda z: z.h, "x", "moe shared_experts",
        lambda setting: gathers_shared(setting) and not _delayed(setting)),
    row("shared experts: input, gathered and quantised", "token", lambda z: z.h, "q",
        "moe shared_experts", lambda setting: gathers_shared(setting) and _delayed(setting)),
    row(
        "shared experts: gate and up", "token", lambda z: 2 * z.f_s, "x", "moe shared_experts",
        _swiglu_as_computed,
    ),
    row(
        "shared experts: gate and up, in FP8", "token", lambda z: 2 * z.f_s, 1,
        "moe shared_experts", _swiglu_in_fp8,
    ),
    row("shared experts: activated", "token", lambda z: z.f_s, "q", "moe shared_experts"),
    row("rows of the experts", "row", lambda z: z.h, "q", _MOE),
    row("weights of the rows", "row", lambda z: 1, 4, _MOE),
    row("experts: gate and up", "row", lambda z: 2 * z.f_e, "x", _MOE, _swiglu_as_computed),
    row("experts: gate and up, in FP8", "row", lambda z: 2 * z.f_e, 1, _MOE, _swiglu_in_fp8),
    row("experts: activated", "row", lambda z: z.f_e, "q", "moe moe_act"),
)  # fmt: skip

MTP = (
    row("embedding", "split", lambda z: z.h),
    row("hidden state", "split", lambda z: z.h),
    row("1 / rms of three norms", "split", lambda z: 3, 4),
    row("both, normed, side by side", "split", lambda z: 2 * z.h, "q"),
    row("tokens, labels and mask, rolled", "token", lambda z: 2.5, 8),
    row("output of the layer", "split", lambda z: z.h),
)

HEAD = (
    row("output of the last layer", "split", lambda z: z.h),
    row("1 / rms of the final norm", "split", lambda z: 1, 4),
    row(
        "normed, for the head", "split", lambda z: z.h,
        when=lambda setting: not setting.model.mtp_num_layers,
    ),
)  # fmt: skip

ATTENTION_OWED = (
    row("normed input", "split", lambda z: z.h, "q"),
    row("normed input, once more", "split", lambda z: z.h, "q", when=_fp8),
    row("gradients of both latents and of the rotary key", "split",
        lambda z: z.d_q + z.d_c + z.d_R, "q"),
    row("normed Q latent", "split", lambda z: z.d_q, "q"),
    row("gradient of queries", "token", lambda z: z.n * (z.d_h + z.d_R), "q"),
    row("normed KV latent", "split", lambda z: z.d_c, "q", when=whole),
    row("gradient of keys and values", "token", lambda z: z.n * (z.d_h + z.d_v), "q", when=whole),
    row("gradient of their projection", "layer", lambda z: z.n * (z.d_h + z.d_v) * z.d_c,
        when=shared),
    row("output of the heads", "token", lambda z: z.n * z.d_v, "q"),
    row("gradient after attention", "split", lambda z: z.h, "q"),
)  # fmt: skip

DENSE_OWED = (
    row("normed input of the block", "split", lambda z: z.h, "q"),
    row("gradient of gate and up", "token", lambda z: 2 * z.f, "q"),
    row("activated", "token", lambda z: z.f, "q"),
    row("gradient of the layer's output", "split", lambda z: z.h, "q"),
)

MOE_OWED = (
    row(
        "shared experts: input, and gradient of the output",
        "split",
        lambda z: 2 * z.h,
        "q",
        when=shared_takes_its_own,
    ),
    row("shared experts: both, gathered", "token", lambda z: 2 * z.h, "q", when=gathers_shared),
    row("shared experts: gradient of gate and up", "token", lambda z: 2 * z.f_s, "q"),
    row("shared experts: activated", "token", lambda z: z.f_s, "q"),
    row("rows of the experts, and gradient of their output", "row", lambda z: 2 * z.h, "q"),
    row("gradient of gate and up", "row", lambda z: 2 * z.f_e, "q"),
    row("weighted, activated", "row", lambda z: z.f_e, "q"),
)

MTP_OWED = (
    row("embedding and hidden state, normed", "split", lambda z: 2 * z.h, "q"),
    row("gradient of the layer's input", "split", lambda z: z.h, "q"),
)

ATTENTION_FORWARD = (
    row("queries, keys and values before they are laid out", "token",
        lambda z: z.n * (2 * z.d_h + z.d_R + z.d_v), when=whole),
    *A_GROUP_FORWARD,
    row("normed input", "split", lambda z: z.h),
    row("output of the projection", "split", lambda z: z.h),
)  # fmt: skip

DENSE_FORWARD = (
    row("gate and up, as they are computed", "token", lambda z: 2 * z.f, when=_swiglu_in_fp8),
    row("activated", "token", lambda z: z.f),
    row("output", "split", lambda z: z.h),
)

MOE_FORWARD = (
    row("gate and up, as they are computed", "row", lambda z: 2 * z.f_e, when=_swiglu_in_fp8),
    row("rows, before they are quantised", "row", lambda z: z.h, when=_fp8),
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
    row("gradients of activated, gate and up", "token", lambda z: 3 * z.f),
    row("gate and up, cast back", "token", lambda z: 2 * z.f, when=_swiglu_in_fp8),
    row("the same, quantised both ways", "token", lambda z: 4 * z.f, "q", when=_fp8),
)

MOE_BACKWARD = (
    row("gradients of the residual stream", "split", lambda z: 2 * z.h),
    row("gradients of the rows", "row", lambda z: 2 * z.h),
    row("gradient of the output, quantised both ways", "row", lambda z: 2 * z.h, "q", when=_fp8),
    row("gradients of activated, gate and up", "row", lambda z: 3 * z.f_e),
    row("gate and up, cast back", "row", lambda z: 2 * z.f_e, when=_swiglu_in_fp8),
)
"""What a block works with beyond what is kept, at its fullest."""
