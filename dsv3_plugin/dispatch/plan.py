"""The plan of a two-hop exchange: from a routing map to split sizes and permutations.

Pure tensor functions, without communication, without a loop over tokens, and with sizes that are
known beforehand, so that nothing waits for a GPU but the one copy of `count_routing`'s result.
Symbols as in `topology`: T tokens here, X experts, E ranks, N nodes, L ranks per node. Hop 1 takes
one row per (token, node) along the rail; hop 2 one row per (token, rank) inside the node.
"""

from dataclasses import dataclass

import torch

from dsv3_plugin.dispatch.topology import Topology


@dataclass(frozen=True)
class Splits:
    """Rows one rank sends and receives, by peer, and what its experts get. Host integers.

    Attributes:
        to_nodes, from_nodes: hop 1, by node of the rail. `[N]`
        to_ranks, from_ranks: hop 2, by local index in the node. `[L]`
        per_expert: rows of each local expert, over all sources. `[X / E]`
        widest: the largest number of nodes any token of the group needs.
    """

    to_nodes: list[int]
    from_nodes: list[int]
    to_ranks: list[int]
    from_ranks: list[int]
    per_expert: list[int]
    widest: int


def count_routing(routing_map: torch.Tensor, topology: Topology) -> torch.Tensor:
    """What every rank must know of this rank's routing: its copies to nodes, ranks and experts.

    Args:
        routing_map: `[T, X]` bool.

    Returns:
        int32 `[N + E + X + 1]`: tokens that need each node, each rank, each expert, and the largest
        number of nodes one token needs.
    """
    per_rank = needed(routing_map, topology.ranks)
    per_node = needed(per_rank, topology.nodes)
    widest = per_node.sum(1).amax() if len(per_node) else per_node.new_zeros((), dtype=torch.int64)
    counts = (per_node.sum(0), per_rank.sum(0), routing_map.sum(0), widest[None])
    return torch.cat(counts).to(torch.int32)


def split_sizes(counts: torch.Tensor, topology: Topology, rank: int) -> Splits:
    """Splits of one rank from the counts of all.

    Args:
        counts: `[E, N + E + X + 1]` on the host: `count_routing` of every rank.
        rank: whose splits, within the expert-parallel group.
    """
    to_node, to_rank, to_expert, widest = counts.long().split(
        [topology.nodes, topology.ranks, topology.experts, 1], dim=1
    )
    node = topology.node_of[rank]
    rail = topology.rail_ranks(rank)
    neighbours = topology.node_ranks(rank)
    # Hop 2 carries what the rail of each neighbour brought into this node.
    forwarded = to_rank.view(topology.nodes, topology.ranks_per_node, topology.ranks).sum(0)
    first = rank * topology.experts_per_rank
    return Splits(
        to_nodes=to_node[rank].tolist(),
        from_nodes=to_node[rail, node].tolist(),
        to_ranks=forwarded[topology.local_index(rank), neighbours].tolist(),
        from_ranks=forwarded[:, rank].tolist(),
        per_expert=to_expert[:, first : first + topology.experts_per_rank].sum(0).tolist(),
        widest=max(widest.flatten().tolist()),
    )


def needed(routing: torch.Tensor, parts: int) -> torch.Tensor:
    """`[T, X]` bool → `[T, parts]`: whether a token needs any expert of each equal part."""
    return routing.view(len(routing), parts, routing.shape[1] // parts).any(-1)


def rows_by_destination(needs: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows to send, grouped by destination and, within one, in the order of their sources.

    Args:
        needs: `[R, D]` bool: source row r goes to destination d.
        total: number of True, known from the counts.

    Returns:
        destination and source row of each row sent, both int64 `[total]`.
    """
    destination, source = torch.nonzero_static(needs.t(), size=total).unbind(1)
    return destination, source
