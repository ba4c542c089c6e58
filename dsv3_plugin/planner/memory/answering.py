"""Bytes of an engine that answers between steps, beside a rank's states: `dsv3_plugin.inference`.

The weights are those in training, where they lie, so they are not there twice; the cache is given
back before a step.
"""

from collections.abc import Sequence

from dsv3_plugin.planner.answering import PAGE, Answering
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage

_EXPERT = 4
"""Bytes of an expert's number."""
_FP32 = 4


def cache(setting: Setting, answering: Answering, stages: Sequence[Stage]) -> int:
    """Bytes of cached latents: of as many of the longest answers as there are, or as asked for."""
    if answering.cache_bytes is not None:
        return answering.cache_bytes
    pages = answering.pages * answering.at_once(setting.data)
    routed = sum(stage.moe for stage in stages) if answering.replay else 0
    experts = routed * PAGE * setting.model.moe_router_topk * _EXPERT
    return pages * (layers(answering, stages) * _page(setting) + experts)


def layers(answering: Answering, stages: Sequence[Stage]) -> int:
    """Layers of a rank that remember."""
    predictors = sum(stage.mtp for stage in stages) if answering.drafts else 0
    return sum(stage.decoder_layers for stage in stages) + predictors


def engine_works_with(setting: Setting, answering: Answering, stages: Sequence[Stage]) -> int:
    """Bytes that attention of a layer takes in the fullest of an engine's steps.

    What else the step's tokens go through, experts of other ranks' tokens among it, is not counted;
    nor are keys and values of all heads where sums are rounded once (FP32 on a CPU).
    """
    if not layers(answering, stages):
        return 0
    return max(_of_answers(setting, answering), _of_a_prompt(setting, answering))


def _of_answers(setting: Setting, answering: Answering) -> int:
    """Where every answer gets a token at its longest.

    Of all texts there is what their queries must not look at. The latents of as many as are read at
    once lie side by side, shared pages once for each, and of these there are for each head scores
    before the softmax and behind it, in FP32; in other types torch keeps none, and there is what
    may be seen, as it is told and as a number that is added.
    """
    each = 1 + answering.drafts
    rows = min(answering.at_once(setting.data), answering.in_step // each)
    positions = answering.pages * PAGE
    texts = min(rows, answering.read_at_once)
    for_head = 2 * _FP32 if setting.dtype == "fp32" else 1 + setting.width
    read = texts * answering.pages * _page(setting)
    return read + texts * each * _heads(setting) * positions * for_head + rows * each * positions


def _of_a_prompt(setting: Setting, answering: Answering) -> int:
    """Where the last part of a prompt is read, or of a text that is gone on with, which is read
    again: its latents, keys and values of all heads, keys again with the rotated part, what the
    queries must not look at, and where they are not the whole text what they may, told and added.
    """
    model = setting.model
    length, heads = answering.read_in, _heads(setting)
    wide = 2 * model.qk_head_dim + model.v_head_dim + model.qk_pos_emb_head_dim
    read = -(-length // PAGE) * _page(setting)
    for_pair = 1 if length <= answering.in_step else 2 + setting.width
    told = min(answering.in_step, length) * length * for_pair
    return read + length * heads * wide * setting.width + told


def _heads(setting: Setting) -> int:
    return setting.model.num_attention_heads // setting.tensor


def _page(setting: Setting) -> int:
    """Bytes of a page in a layer: the latent and the rotated key of each token."""
    model = setting.model
    return PAGE * (model.kv_lora_rank + model.qk_pos_emb_head_dim) * setting.width
