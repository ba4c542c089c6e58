"""Experts of the few tokens of a step, all of them on this rank."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3_plugin.dispatch.moe_layer import MoELayer
from dsv3_plugin.model.experts import GroupedExperts


def moe(layer: MoELayer, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Routed and shared experts of tokens.

    Args:
        layer: of the model.
        hidden: [t, h], normed.

    Returns:
        [t, h], and the experts that each token went to, [t, top-k].
    """
    chosen, weights = layer.router.choose(hidden)
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    token = order // chosen.shape[1]
    rows = hidden.index_select(0, token)
    counts = flat.bincount(minlength=layer.config.num_moe_experts)
    out = _apply(layer.experts, rows, counts, weights.flatten().index_select(0, order))
    summed = torch.zeros_like(hidden).index_add_(0, token, out)
    if layer.shared_experts is not None:
        summed += swiglu(layer.shared_experts, hidden)
    return summed, chosen


def _apply(experts: GroupedExperts, rows: Tensor, counts: Tensor, weights: Tensor) -> Tensor:
    """Each row's expert, as in training; [rows, h] sorted by expert."""
    if rows.is_cuda or len(rows) >= len(counts):
        return experts(rows, counts, weights)[0]
    # A grouped product on a CPU goes through all experts, and most have no rows here.
    outs, start = [], 0
    for expert, count in enumerate(counts.tolist()):
        if count:
            gate_up = F.linear(rows[start : start + count], experts.weight1[expert])
            gate, up = gate_up.chunk(2, dim=-1)
            mixed = F.silu(gate).mul_(up).mul_(weights[start : start + count, None])
            outs.append(F.linear(mixed, experts.weight2[expert]))
            start += count
    return torch.cat(outs)


def swiglu(mlp: torch.nn.Module, hidden: Tensor) -> Tensor:
    """w₂ (silu(g) ∘ u) with [g; u] = w₁ x, of a dense layer or shared experts; [t, h]."""
    gate, up = F.linear(hidden, mlp.linear_fc1.weight).chunk(2, dim=-1)
    return F.linear(F.silu(gate).mul_(up), mlp.linear_fc2.weight)
