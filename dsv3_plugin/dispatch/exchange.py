"""The two hops of one layer's tokens, out to their experts and back, so that they can overlap.

What is sent along the rail and inside the node, and in which form, is decided here; the links
(`link.py`) carry it. Neither knows of autograd: `two_hop.py` puts the passages into a graph.
"""

from collections.abc import Generator
from dataclasses import dataclass

import torch

from dsv3_plugin.dispatch.copies import Copies
from dsv3_plugin.dispatch.link import Link, Pending
from dsv3_plugin.dispatch.plan import Splits, needed
from dsv3_plugin.dispatch.topology import Topology
from dsv3_plugin.dispatch.wire import NOT_ROUTED, Row

# An exchange in steps: yields what it waits for, is sent the rows that came, returns its result.
Steps = Generator[Pending, torch.Tensor, tuple[torch.Tensor, torch.Tensor | None]]


class InFlight:
    """An exchange whose longest hop is under way; `finish` completes it.

    Of the two hops the one between nodes is the one worth hiding: what precedes it is done at once,
    what follows it is done in `finish`.
    """

    def __init__(self, steps: Steps, slow: Link) -> None:
        self._steps = steps
        self._pending: Pending | None = None
        self._result: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        self._resume(None)
        while self._pending is not None and self._pending.link is not slow:
            self._resume(self._pending.wait())

    def finish(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states and, where they were sent, routing weights or their gradients."""
        while self._pending is not None:
            self._resume(self._pending.wait())
        # Not kept: autograd hangs the graph on these tensors, and the graph holds the exchange.
        result, self._result = self._result, (None, None)
        return result

    def _resume(self, received: torch.Tensor | None) -> None:
        try:
            self._pending = self._steps.send(received)
        except StopIteration as end:
            self._pending, self._result = None, end.value


@dataclass(frozen=True)
class Links:
    """How a rank reaches the others: all of them, along its rail, inside its node."""

    everyone: Link
    rail: Link
    node: Link

    @property
    def slow(self) -> Link:
        return self.rail if len(self.rail.peers) > 1 else self.node


class Exchange:
    """One layer's tokens of one micro-batch, on their way out and back.

    Args:
        links: see `Links`.
        routing_map: `[T, X]` bool.
        splits: from the counts of all ranks.
        fp8: rows fan out in FP8.
    """

    def __init__(
        self, links: Links, routing_map: torch.Tensor, splits: Splits, *, fp8: bool
    ) -> None:
        self.links = links
        self.topology: Topology = links.everyone.topology
        self.routing_map = routing_map
        self.splits = splits
        self.fp8 = fp8
        self.in_flight: InFlight
        self._rail_rows: Copies | None = None
        if self.topology.nodes > 1:
            nodes = needed(routing_map, self.topology.nodes)
            self._rail_rows = Copies(nodes, sum(splits.to_nodes))
        # Which rank an arrived row is for is known when its weights are here.
        self._node_rows: Copies | None = None

    def fan_out(self, hidden: torch.Tensor, weights: torch.Tensor | None, passage: str) -> Steps:
        """`[T, h]` and `[T, X]` here → rows `[R, h]` and `[R, X / E]` at the experts' ranks.

        A hop with one member is not made. A row takes along the weights of the experts it can still
        reach: of one node's on the rail, of one rank's inside the node.
        """
        topology, splits = self.topology, self.splits
        row = Row(hidden.shape[1], hidden.dtype, self.fp8)
        encoded = row.encode(hidden)
        if weights is not None:
            weights = weights.masked_fill(~self.routing_map, NOT_ROUTED)
        if self._rail_rows is not None:
            if weights is not None:
                row = row.carrying(topology.experts_per_node, weights.dtype)
                weights = self._rail_rows.take_slots(weights)
            message = yield self.links.rail.post(
                row.pack(encoded, self._rail_rows.sources, weights),
                splits.to_nodes,
                splits.from_nodes,
                f"{passage} between nodes",
            )
            encoded, weights = row.unpack(message)
        if topology.ranks_per_node > 1:
            if weights is not None:
                if self._node_rows is None:
                    ranks = needed(weights != NOT_ROUTED, topology.ranks_per_node)
                    self._node_rows = Copies(ranks, sum(splits.to_ranks))
                row = row.carrying(topology.experts_per_rank, weights.dtype)
                weights = self._node_rows.take_slots(weights)
            message = yield self.links.node.post(
                row.pack(encoded, self._node_rows.sources, weights),
                splits.to_ranks,
                splits.from_ranks,
                f"{passage} inside the node",
            )
            encoded, weights = row.unpack(message)
        return row.decode(encoded), weights

    def fan_in(self, rows: torch.Tensor, weights: torch.Tensor | None, passage: str) -> Steps:
        """Rows `[R, h]` and `[R, X / E]` of the experts' ranks, summed to `[T, h]` and `[T, X]`."""
        topology, splits = self.topology, self.splits
        row = Row(rows.shape[1], rows.dtype)
        if topology.ranks_per_node > 1:
            if weights is not None:
                row = row.carrying(topology.experts_per_rank, weights.dtype)
            message = yield self.links.node.post(
                row.pack(row.encode(rows), None, weights),
                splits.from_ranks,
                splits.to_ranks,
                f"{passage} inside the node",
            )
            rows, weights = _summed(self._node_rows, row, message)
        if self._rail_rows is not None:
            if weights is not None:
                row = row.carrying(topology.experts_per_node, weights.dtype)
            message = yield self.links.rail.post(
                row.pack(row.encode(rows), None, weights),
                splits.from_nodes,
                splits.to_nodes,
                f"{passage} between nodes",
            )
            rows, weights = _summed(self._rail_rows, row, message)
        return rows, weights

    def launch(self, steps: Steps) -> None:
        """Starts an exchange. Of one `Exchange`, one is under way at a time."""
        self.in_flight = InFlight(steps, self.links.slow)


def _summed(
    copies: Copies, row: Row, message: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What came back in a message, added up where its copies were taken."""
    encoded, weights = row.unpack(message)
    rows = copies.sum(row.decode(encoded))
    return rows, None if weights is None else copies.put_slots(weights)
