"""Load of the experts and traffic of the dispatch over one training step, for the run's metrics."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import get_model_config

from dsv3_plugin.dispatch.balance import load_of_nodes, load_of_ranks, max_violation
from dsv3_plugin.dispatch.moe_layer import MoELayer, dispatch_of, nodes_of_group
from dsv3_plugin.dispatch.traffic import LINK_CLASSES, Traffic


def collect_step_metrics(model_chunks: Sequence[torch.nn.Module]) -> dict[str, Any]:
    """What all ranks of the run dispatched since the last call; every rank must call it.

    One all-reduce over the world. Layers are numbered from 0, as in the Hugging Face checkpoint,
    the multi-token prediction layers after the main ones.

    Returns:
        On every rank, with layers as text (it becomes JSON):

        * `expert_load`: {layer: tokens per expert `[X]`},
        * `rank_load`, `node_load`: {layer: tokens per expert-parallel rank, per node}, on the nodes
          that this rank's expert-parallel group lies on,
        * `max_vio`: {layer: max load / mean load − 1} over experts (arXiv 2408.15664, eq. 4),
        * `traffic`: {link class: {"bytes", "messages"}}, summed over ranks and layers; absent with
          upstream's flex dispatcher, whose kernels do not tell what they send.

        Empty for a model without experts.
    """
    config = get_model_config(model_chunks[0])
    if not config.num_moe_experts:
        return {}
    load, traffic = _sum_over_world(config, _moe_layers(model_chunks))
    group = parallel_state.get_expert_model_parallel_group()
    nodes = nodes_of_group(group, dispatch_of(config).ranks_per_node)
    per_layer = {str(index): row for index, row in enumerate(load.tolist()) if any(row)}
    per_rank = {layer: load_of_ranks(row, len(nodes)) for layer, row in per_layer.items()}
    metrics = {
        "expert_load": per_layer,
        "rank_load": per_rank,
        "node_load": {layer: load_of_nodes(row, nodes) for layer, row in per_rank.items()},
        "max_vio": {layer: round(max_violation(row), 4) for layer, row in per_layer.items()},
    }
    if config.moe_token_dispatcher_type == "alltoall":  # two_hop stands in its place
        metrics["traffic"] = {
            link: {"bytes": traffic.bytes[link], "messages": traffic.messages[link]}
            for link in LINK_CLASSES
        }
    return metrics


def discard_counts(model_chunks: Sequence[torch.nn.Module]) -> None:
    """Forgets what this rank dispatched since the last step: an evaluation's tokens travel too.

    A step begins with it. What counts cannot be told by whether gradients are wanted: the first
    forward of a recomputed layer wants none, and what it sends belongs to the step.
    """
    for layer in _moe_layers(model_chunks):
        layer.take_load()
        layer.traffic.take()


def tensorboard_scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers of `collect_step_metrics` that make a curve, by TensorBoard name."""
    scalars = {
        f"dispatch/{link}_{what}": number
        for link, counts in metrics.get("traffic", {}).items()
        for what, number in counts.items()
    }
    violations = metrics.get("max_vio", {})
    scalars |= {f"max_vio/layer_{layer}": value for layer, value in violations.items()}
    if violations:
        scalars["max_vio/mean"] = sum(violations.values()) / len(violations)
    return scalars


def _moe_layers(model_chunks: Sequence[torch.nn.Module]) -> list[MoELayer]:
    modules = (module for chunk in model_chunks for module in chunk.modules())
    return [module for module in modules if isinstance(module, MoELayer)]


def _sum_over_world(
    config: TransformerConfig, layers: Sequence[MoELayer]
) -> tuple[torch.Tensor, Traffic]:
    """Load `[layers, X]` int64 and traffic of all ranks; the layers' own counts start anew."""
    experts = config.num_moe_experts
    rows = config.num_layers + (config.mtp_num_layers or 0)
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    sums = torch.zeros(rows * experts + 2 * len(LINK_CLASSES), dtype=torch.int64, device=device)
    load = sums[: rows * experts].view(rows, experts)
    own = Traffic()
    for layer in layers:
        index = layer.layer_number - 1 + (config.num_layers if layer.is_mtp_layer else 0)
        load[index] += layer.take_load()
        own += layer.traffic.take()
    counts = [*own.bytes.values(), *own.messages.values()]
    sums[rows * experts :] = torch.tensor(counts, device=device)
    dist.all_reduce(sums)
    numbers = sums[rows * experts :].tolist()
    return load.cpu(), Traffic(
        dict(zip(LINK_CLASSES, numbers[: len(LINK_CLASSES)], strict=True)),
        dict(zip(LINK_CLASSES, numbers[len(LINK_CLASSES) :], strict=True)),
    )
