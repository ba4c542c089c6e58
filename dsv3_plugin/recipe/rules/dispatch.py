"""How tokens travel to their experts."""

from collections.abc import Iterator

from dsv3_plugin.recipe.schema import Recipe

_OVERLAP = "overlap-moe-expert-parallel-comm"
"""Upstream's flag: its own schedules run a forward beside a backward, layer by layer."""


def dispatch(recipe: Recipe) -> Iterator[str]:
    """Expert-parallel ranks fill nodes; only the two-hop dispatcher quantises."""
    wanted, expert = recipe.dispatch, recipe.parallel.expert
    if wanted.precision == "fp8" and wanted.kind != "two_hop":
        yield f"dispatch.precision: fp8 needs dispatch.kind: two_hop, not {wanted.kind}"
    if wanted.kind != "alltoall" and recipe.model.num_moe_experts is None:
        yield f"dispatch.kind: {wanted.kind} needs a model with experts: leave it out"
    if wanted.hide_shared_expert and "shared_experts" in recipe.recompute:
        yield (
            "dispatch.hide_shared_expert computes the shared expert in parts, and recompute: "
            "[shared_experts] as a whole: leave out one of them"
        )
    if wanted.hide_shared_expert and wanted.kind != "two_hop" and _owes_weight_gradients(recipe):
        yield (
            f"dispatch.hide_shared_expert with dispatch.kind: {wanted.kind} computes the shared "
            f"expert on a CUDA stream of its own, which does not go together with weight gradients "
            f"that are left owed: leave it out, or use dispatch.kind: two_hop"
        )
    if wanted.kind in ("deepep", "hybridep") and recipe.host == "cpu":
        yield f"dispatch.kind: {wanted.kind} needs a GPU; on the CPU use alltoall or two_hop"
    if wanted.kind == "two_hop" and recipe.passed_flags.get(_OVERLAP):
        # Upstream frees what was sent; our first hop is given a view of what the backward needs.
        yield (
            f"megatron_args: {_OVERLAP} cuts layers into nodes, which the two-hop dispatcher does "
            "not know: use dispatch.kind: alltoall, deepep or hybridep, or leave it out"
        )
    if recipe.data.packing == "whole" and recipe.passed_flags.get(_OVERLAP):
        yield (
            f"megatron_args: {_OVERLAP} tells routers nothing of the padding that data.packing: "
            "whole leaves: leave it out, or set data.packing: stream"
        )
    per_node = wanted.ranks_per_node
    # A node may also hold several expert-parallel groups.
    if per_node != "auto" and expert % per_node and per_node % expert:
        divisors = ", ".join(str(number) for number in range(1, expert) if expert % number == 0)
        yield (
            f"dispatch.ranks_per_node {per_node} does not divide expert {expert}: set it to "
            f"{divisors} or {expert}, or to a multiple of {expert}"
        )


def _owes_weight_gradients(recipe: Recipe) -> bool:
    """Whether layers are built to leave their weight gradients owed, as our executor has them."""
    return recipe.parallel.pipeline > 1 and recipe.executor == "ours"
