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
    """Bytes at the fullest of a step in which every answer gets a token at its longest.

    Attention of a layer reads the latents of all texts side by side, and has for each query what it
    must not look at, as it is told and as a number that is added.
    """
    held = layers(answering, stages)
    if not held:
        return 0
    rows = min(answering.at_once(setting.data), answering.in_step // (1 + answering.drafts))
    read = cache(setting, answering, stages) // held
    read = min(read, rows * answering.pages * _page(setting))
    positions = answering.pages * PAGE
    heads = setting.model.num_attention_heads // setting.tensor
    queries = rows * (1 + answering.drafts) * heads
    return read + queries * positions * (1 + setting.width)


def _page(setting: Setting) -> int:
    """Bytes of a page in a layer: the latent and the rotated key of each token."""
    model = setting.model
    return PAGE * (model.kv_lora_rank + model.qk_pos_emb_head_dim) * setting.width
