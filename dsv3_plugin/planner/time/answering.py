"""Seconds of a round of answers, as far as a formula with a source says them.

Making answers is bound by the memory's bandwidth: a step of the engine reads the weights that its
tokens need once, and every text's latents, whatever else it does (Pope et al., arXiv 2211.05102,
section 2.1). An answer takes a step for each of its tokens, and stages of a pipeline come one after
the other. So much a round takes at the least. What messages between ranks, products, drawing and
rewards take is not counted, nor that guesses may be wrong.
"""

from collections.abc import Sequence
from dataclasses import replace

from dsv3_plugin.planner.answering import Answering
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.memory.answering import cache
from dsv3_plugin.planner.memory.tensors import rank_chunks
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage
from dsv3_plugin.planner.time.kernels import memory_rate
from dsv3_plugin.planner.time.step import evaluation_seconds
from dsv3_plugin.schedules.placement import Placement


def answering_seconds(
    setting: Setting,
    answering: Answering,
    cluster: Cluster,
    stages: Sequence[Stage],
    placement: Placement,
) -> float:
    """Seconds that a round takes at the least whose longest answer is as long as it may be, or is
    gone on by as many tokens as a round may make of it.

    Every text is of half its length on average; the embedding's rows are not counted.

    Args:
        setting: how the model is divided.
        answering: the round.
        cluster: where.
        stages: of the model, in its order.
        placement: which pipeline rank holds which of them.
    """
    rows = answering.at_once(setting.data)
    read = 0.0
    for chunks in placement.chunks:
        held = tuple(
            stages[placement.model_stage(stage)] for stage in chunks if stage < placement.depth
        )
        read += _weights_read(setting, answering, held, rows)
        read += cache(setting, answering, held) / 2
    steps = -(-answering.made // (1 + answering.drafts))
    return steps * read / memory_rate(cluster)


def _weights_read(
    setting: Setting, answering: Answering, stages: tuple[Stage, ...], rows: int
) -> float:
    """Bytes of a rank's weights that a token of each of its answers needs, those of other ranks
    with the same experts' answers included."""
    model = setting.model
    tokens = rows * setting.expert
    chosen = (model.moe_router_topk or 0) / max(1, model.num_moe_experts or 0)
    reached = 1 - (1 - chosen) ** tokens  # of the experts, each with its tokens by chance
    if not answering.drafts:
        stages = tuple(replace(stage, mtp=0) for stage in stages)
    values = sum(
        tensor.number * tensor.values * (reached if tensor.routed else 1.0)
        for chunk in rank_chunks(setting, stages)
        for tensor in chunk
        if tensor.name != "embedding"
    )
    return values * setting.width


def log_prob_seconds(
    setting: Setting,
    answering: Answering,
    cluster: Cluster,
    stages: Sequence[Stage],
    placement: Placement,
    micro_batches: int,
) -> float:
    """Seconds of a step's part of the passes over a round's answers before its steps.

    Args:
        setting, answering, cluster, stages, placement: as above.
        micro_batches: of a step.
    """
    once = evaluation_seconds(setting, cluster, stages, placement, micro_batches)
    return answering.passes * once / answering.epochs
