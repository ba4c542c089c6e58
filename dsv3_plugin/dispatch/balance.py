"""How evenly tokens are spread over experts, ranks and nodes. No torch here."""

from collections.abc import Sequence


def max_violation(load: Sequence[int]) -> float:
    """MaxVio = max load / mean load − 1 (arXiv 2408.15664, eq. 4): 0 is perfect balance."""
    return max(load) * len(load) / sum(load) - 1


def load_of_ranks(expert_load: Sequence[int], ranks: int) -> list[int]:
    """Load of each of `ranks` ranks, which hold equal runs of experts. `[X]` → `[E]`"""
    size = len(expert_load) // ranks
    return [sum(expert_load[rank * size : (rank + 1) * size]) for rank in range(ranks)]


def load_of_nodes(rank_load: Sequence[int], nodes: Sequence[int]) -> list[int]:
    """Load of each node from that of the ranks; a node may hold more ranks than another.

    Args:
        rank_load: of every rank of an expert-parallel group. `[E]`
        nodes: the node of every rank. `[E]`
    """
    loads = dict.fromkeys(nodes, 0)
    for load, node in zip(rank_load, nodes, strict=True):
        loads[node] += load
    return list(loads.values())
