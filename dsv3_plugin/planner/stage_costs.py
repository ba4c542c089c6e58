"""What the stages of a real model cost, by the planner's FLOP counts.

Computation is by FLOPs: the last stage also holds the head and the layers of multi-token prediction
(each with the head once more); the embedding's lookup is free. What overlap can hide is by the
number of mixture-of-experts layers, since dense layers have no all-to-all. Activations are by the
number of layers.
"""

from collections.abc import Sequence

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.counts import flops_per_token
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.schedules.costs import Costs, StageCosts, sized_stages


def model_stages(
    model: ModelConfig, layers: Sequence[int], pp: int, costs: Costs, seq_length: int = 4096
) -> StageCosts:
    """Costs of stages that hold the given numbers of decoder layers, along the model.

    pp: number of devices; the unit of `costs` is one P-th of this model.
    """
    if sum(layers) != model.num_layers or min(layers) < 0:
        raise UserError(
            f"the stages hold {sum(layers)} layers together, but {model.name} has "
            f"{model.num_layers}"
        )
    flops = {kind.kind: kind for kind in flops_per_token(model, seq_length).layers}
    work, exchanges = [], []
    layer = 0
    for number in layers:
        kinds = model.moe_layer_freq[layer : layer + number]
        layer += number
        work.append(sum(flops["moe" if moe else "dense"].forward for moe in kinds))
        exchanges.append(sum(kinds))
    kept = list(layers)
    work[-1] += flops["head"].forward
    if "mtp" in flops:
        depths = model.mtp_num_layers or 0
        work[-1] += depths * flops["mtp"].forward
        exchanges[-1] += depths * model.mtp_is_moe
        kept[-1] += depths
    return sized_stages(costs, *(_shares(values, pp) for values in (work, exchanges, kept)))


def even_layers(
    model: ModelConfig, stage_ranks: Sequence[int], seq_length: int = 4096
) -> list[int]:
    """Decoder layers of each stage such that the busiest rank has as little as can be.

    Layers are dealt one by one to the rank with the least work, there to the stage with the least.
    DeepSeek-V3 on 16 ranks in a V: 1, then 2 on each of 30 stages, none beside the head and MTP.
    """
    flops = {kind.kind: kind.forward for kind in flops_per_token(model, seq_length).layers}
    layer = max(flops.get("moe", 0), flops.get("dense", 0))
    work = [0.0] * len(stage_ranks)
    work[-1] = flops["head"] + (model.mtp_num_layers or 0) * flops.get("mtp", 0)
    layers = [0] * len(stage_ranks)
    for _ in range(model.num_layers):
        by_rank = [0.0] * (max(stage_ranks) + 1)
        for stage, rank in enumerate(stage_ranks):
            by_rank[rank] += work[stage]
        stage = min(range(len(stage_ranks)), key=lambda s: (by_rank[stage_ranks[s]], work[s], s))
        layers[stage] += 1
        work[stage] += layer
    return layers


def _shares(values: Sequence[float], pp: int) -> list[float]:
    """Values as P-ths of their sum; all nothing where the sum is."""
    total = sum(values)
    return [value * pp / total if total else 0.0 for value in values]
