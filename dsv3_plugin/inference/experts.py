"""Experts of the few tokens of a step."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3_plugin.dispatch.moe_layer import MoELayer
from dsv3_plugin.inference.company import ExpertRanks
from dsv3_plugin.model import rounded_once
from dsv3_plugin.model.experts import GroupedExperts


def moe(layer: MoELayer, hidden: Tensor, ranks: ExpertRanks | None) -> tuple[Tensor, Tensor]:
    """Routed and shared experts of tokens.

    Args:
        layer: of the model.
        hidden: [t, h], normed.
        ranks: who have the other experts; None: all are here.

    Returns:
        [t, h], and the experts that each token went to, [t, top-k].
    """
    chosen, weights = layer.router.choose(hidden)
    if ranks is None:
        summed = _routed(layer.experts, hidden, chosen, weights, first=0)
    else:
        # The choice travels with the tokens: computed again among others it might be rounded to
        # another one.
        everyone = [ranks.gathered(rows) for rows in (hidden, chosen, weights)]
        first = ranks.rank * layer.experts.num_local_experts
        summed = ranks.summed(_routed(layer.experts, *everyone, first=first))
    summed = summed.to(hidden.dtype)
    if layer.shared_experts is not None:
        summed = summed + swiglu(layer.shared_experts, hidden)
    return summed, chosen


def _routed(
    experts: GroupedExperts, hidden: Tensor, chosen: Tensor, weights: Tensor, *, first: int
) -> Tensor:
    """What the experts of this rank add to tokens [t, h], in FP64 where sums are rounded once:
    ranks may add to it first.

    Args:
        experts: of this rank.
        hidden: of all tokens.
        chosen, weights: [t, top-k].
        first: number of this rank's first expert.
    """
    flat = chosen.flatten() - first
    order = flat.argsort(stable=True)
    if experts.num_local_experts < experts.config.num_moe_experts:
        sorted_experts = flat[order]
        order = order[(sorted_experts >= 0) & (sorted_experts < experts.num_local_experts)]
    token = order // chosen.shape[1]
    rows = hidden.index_select(0, token)
    counts = flat[order].bincount(minlength=experts.num_local_experts)
    out = _apply(experts, rows, counts, weights.flatten().index_select(0, order))
    sums = torch.zeros_like(hidden, dtype=torch.float64 if rounded_once.here() else hidden.dtype)
    return sums.index_add_(0, token, out.to(sums.dtype))


def _apply(experts: GroupedExperts, rows: Tensor, counts: Tensor, weights: Tensor) -> Tensor:
    """Each row's expert, as in training; [rows, h] sorted by expert."""
    if not len(rows):
        return rows
    if rows.is_cuda or len(rows) >= len(counts):
        return experts(rows, counts, weights)[0]
    # A grouped product on a CPU goes through all experts, and most have no rows here: an empty one
    # takes a sixth of the time that one with a row takes here, of 16 and of 256 experts.
    used = [(expert, count) for expert, count in enumerate(counts.tolist()) if count]
    gate, up = _products(rows, experts.weight1, used).chunk(2, dim=-1)
    return _products(F.silu(gate).mul_(up).mul_(weights[:, None]), experts.weight2, used)


def _products(rows: Tensor, weight: Tensor, used: list[tuple[int, int]]) -> Tensor:
    """Rows [rows, i] sorted by expert times the experts' matrices [experts, o, i]: [rows, o].

    Args:
        used: of the experts that have rows, their numbers and how many.
    """
    of_expert = rows.split([count for _, count in used])
    pairs = zip(of_expert, used, strict=True)
    return torch.cat([F.linear(some, weight[expert]) for some, (expert, _) in pairs])


def swiglu(mlp: torch.nn.Module, hidden: Tensor) -> Tensor:
    """w₂ (silu(g) ∘ u) with [g; u] = w₁ x, of a dense layer or shared experts; [t, h]."""
    gate, up = F.linear(hidden, mlp.linear_fc1.weight).chunk(2, dim=-1)
    return F.linear(F.silu(gate).mul_(up), mlp.linear_fc2.weight)
