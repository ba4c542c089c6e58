"""Bytes and messages per class of link: what was sent, and the closed form of what will be.

A link class is where the receiver sits: on the same rank (a copy in memory), on the same node, or
on another node. A message is one non-empty transfer to one peer in one collective.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from dsv3_plugin.dispatch.plan import split_sizes
from dsv3_plugin.dispatch.topology import Topology

LinkClass = Literal["same_rank", "same_node", "other_node"]
LINK_CLASSES: tuple[LinkClass, ...] = ("same_rank", "same_node", "other_node")


def _zeros() -> dict[LinkClass, int]:
    return dict.fromkeys(LINK_CLASSES, 0)


@dataclass
class Traffic:
    """What one rank sent, per link class."""

    bytes: dict[LinkClass, int] = field(default_factory=_zeros)
    messages: dict[LinkClass, int] = field(default_factory=_zeros)

    def add(self, link: LinkClass, size: int, times: int = 1) -> None:
        """Counts `times` messages of `size` bytes each; empty ones are not sent."""
        if size:
            self.bytes[link] += size * times
            self.messages[link] += times

    def take(self) -> "Traffic":
        """What was counted since the last call."""
        taken = Traffic(dict(self.bytes), dict(self.messages))
        self.bytes.update(_zeros())
        self.messages.update(_zeros())
        return taken

    def __add__(self, other: "Traffic") -> "Traffic":
        total = Traffic()
        for link in LINK_CLASSES:
            total.bytes[link] = self.bytes[link] + other.bytes[link]
            total.messages[link] = self.messages[link] + other.messages[link]
        return total


@dataclass(frozen=True)
class RowWidths:
    """Bytes of a row on each of the passages of one layer; `wire.row_widths` knows them.

    Attributes:
        dispatch_rail: forward between nodes: hidden state and weights of one node's experts.
        dispatch_node: forward inside the node: hidden state and weights of one rank's experts.
        combine: forward, a partial sum; both hops.
        combine_gradient: backward of combine; both hops.
        dispatch_gradient_rail: backward of dispatch between nodes: with the gradients of the
            weights of one node's experts.
        dispatch_gradient_node: backward of dispatch inside the node: of one rank's experts.
    """

    dispatch_rail: int
    dispatch_node: int
    combine: int
    combine_gradient: int
    dispatch_gradient_rail: int
    dispatch_gradient_node: int


def link_class(node_of: Sequence[int], sender: int, receiver: int) -> LinkClass:
    """The class of the link between two ranks of a group; `node_of` is the node of each."""
    if sender == receiver:
        return "same_rank"
    return "same_node" if node_of[sender] == node_of[receiver] else "other_node"


def two_hop_traffic(
    counts: torch.Tensor, topology: Topology, rank: int, widths: RowWidths
) -> dict[str, Traffic]:
    """Closed form of what `rank` sends in one layer, by passage, from the counts of all ranks.

    Args:
        counts: `[E, N + E + X + 1]`, `plan.count_routing` of every rank.

    Returns:
        `counts`, `dispatch`, `combine`, `combine_gradient`, `dispatch_gradient`.
    """
    splits = split_sizes(counts, topology, rank)
    return {
        "counts": gathered(topology, rank, counts.shape[1] * 4),
        "dispatch": _hops(
            topology,
            rank,
            splits.to_nodes,
            splits.to_ranks,
            widths.dispatch_rail,
            widths.dispatch_node,
        ),
        "combine": _hops(
            topology, rank, splits.from_nodes, splits.from_ranks, widths.combine, widths.combine
        ),
        "combine_gradient": _hops(
            topology,
            rank,
            splits.to_nodes,
            splits.to_ranks,
            widths.combine_gradient,
            widths.combine_gradient,
        ),
        "dispatch_gradient": _hops(
            topology,
            rank,
            splits.from_nodes,
            splits.from_ranks,
            widths.dispatch_gradient_rail,
            widths.dispatch_gradient_node,
        ),
    }


def all_to_all_traffic(
    counts: torch.Tensor, topology: Topology, rank: int, hidden_bytes: int, weight_bytes: int
) -> dict[str, Traffic]:
    """Closed form of upstream's `MoEAlltoAllTokenDispatcher`: a row per (token, expert).

    Args:
        counts: `[E, X]`, tokens that each rank sends to each expert.
        hidden_bytes, weight_bytes: of one row, sent in two collectives; combine has no weights.
    """
    per_rank = counts.long().view(topology.ranks, topology.ranks, -1).sum(-1)
    sent, received = per_rank[rank].tolist(), per_rank[:, rank].tolist()

    def exchange(rows: list[int], *widths: int) -> Traffic:
        traffic = Traffic()
        for width in widths:
            for peer, number in enumerate(rows):
                traffic.add(link_class(topology.node_of, rank, peer), number * width)
        return traffic

    return {
        "counts": gathered(topology, rank, topology.experts * 8),
        "dispatch": exchange(sent, hidden_bytes, weight_bytes),
        "combine": exchange(received, hidden_bytes),
        "combine_gradient": exchange(sent, hidden_bytes),
        "dispatch_gradient": exchange(received, hidden_bytes, weight_bytes),
    }


def gathered(topology: Topology, rank: int, size: int) -> Traffic:
    """An all-gather of `size` bytes, counted as one message to every other rank."""
    traffic = Traffic()
    for peer in range(topology.ranks):
        if peer != rank:
            traffic.add(link_class(topology.node_of, rank, peer), size)
    return traffic


def _hops(
    topology: Topology, rank: int, rail_rows: list[int], node_rows: list[int], rail: int, node: int
) -> Traffic:
    """Rows sent along the rail and inside the node. A hop that has one member is not made."""
    traffic = Traffic()
    if topology.nodes > 1:
        for peer, rows in zip(topology.rail_ranks(rank), rail_rows, strict=True):
            traffic.add(link_class(topology.node_of, rank, peer), rows * rail)
    if topology.ranks_per_node > 1:
        for peer, rows in zip(topology.node_ranks(rank), node_rows, strict=True):
            traffic.add(link_class(topology.node_of, rank, peer), rows * node)
    return traffic
