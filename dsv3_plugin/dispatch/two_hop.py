"""The two-hop dispatcher: a token crosses the slow network once per node that needs it.

Forward (arXiv 2412.19437, §3.2.2), on T tokens of hidden size h:

1. *Rail hop*: one row per (token, node), hidden state and the routing weights of that node's
   experts, to the rank of the same local index there.
2. *Node hop*: one row per (token, rank) to the ranks of the node that hold its experts.
3. Experts compute; each rank adds up its experts' weighted outputs, one partial sum per row.
4. The node hop back, partial sums added per (token, node); the rail hop back, added per token.

Steps 1-2 are `fan_out`, step 4 is `fan_in`; the gradient of one is the other: the gradient of the
output fans out to the experts (in FP8 when the tokens do: it enters the down-projections), the
gradient of the experts' inputs fans in. Sums are formed in FP32 and travel in the activations'
dtype. Counts are exchanged once per layer, in `dispatch_preprocess`; that is the one place where
the host waits. Everything that the backward needs hangs on the exchange, not on the dispatcher, so
micro-batches in flight and recomputation do not disturb each other.
"""

import functools
import logging
import os
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.token_dispatcher import MoETokenDispatcher
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.autograd.function import once_differentiable

from dsv3_plugin.dispatch.copies import Copies
from dsv3_plugin.dispatch.exchange import Exchange, Links
from dsv3_plugin.dispatch.link import connect
from dsv3_plugin.dispatch.plan import count_routing, split_sizes
from dsv3_plugin.dispatch.topology import (
    RanksPerNode,
    Topology,
    group_topology,
    grouping_note,
    node_limit,
    ranks_per_node,
)
from dsv3_plugin.dispatch.traffic import Traffic
from dsv3_plugin.dispatch.wire import NOT_ROUTED
from dsv3_plugin.errors import UserError

Precision = Literal["bf16", "fp8"]


class TwoHopTokenDispatcher(MoETokenDispatcher):
    """Upstream's dispatcher interface over `Exchange`; dropless, expert tensor parallelism 1.

    Args:
        num_local_experts, local_expert_indices, config, pg_collection: as upstream's dispatchers.
        processes_per_node: a number, or `auto` for what torchrun or Slurm says.
        precision: `fp8` sends tokens and the gradient that enters the down-projections in FP8
            where the group spans several nodes; `bf16` leaves every activation in its own dtype.

    Raises:
        UserError: a configuration it cannot serve, or a group spread unevenly over nodes.
    """

    def __init__(
        self,
        num_local_experts: int,
        local_expert_indices: list[int],
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection | None = None,
        *,
        processes_per_node: RanksPerNode = "auto",
        precision: Precision = "bf16",
    ) -> None:
        super().__init__(config=config, pg_collection=pg_collection)
        _refuse_unsupported(config, self.tp_size)
        self.num_local_experts = num_local_experts
        self.local_expert_indices = local_expert_indices
        self.layer_number: int | None = None
        self.traffic = Traffic()
        self.topology = group_topology(
            dist.get_process_group_ranks(self.ep_group),
            ranks_per_node(processes_per_node, os.environ),
            config.num_moe_experts,
        )
        # Within a node quantising costs more than the bytes it saves: half a dispatch to a whole
        # one on a CPU (benchmarks/dispatch.py), for no byte less between nodes.
        self.fp8 = precision == "fp8" and self.topology.nodes > 1
        if precision == "fp8":
            _say_once(one_node_note(self.topology))
        groups = config.moe_router_num_groups, config.moe_router_group_topk
        self.node_limit = node_limit(self.topology, *groups)
        _say_once(grouping_note(self.topology, *groups))
        everyone, rail, node = (
            connect(self.topology, self.ep_group, members, self.traffic)
            for members in (
                range(self.topology.ranks),
                self.topology.rail_ranks(self.ep_rank),
                self.topology.node_ranks(self.ep_rank),
            )
        )
        self.links = Links(everyone, rail, node)
        self._exchange: Exchange
        self._hidden_shape: torch.Size
        self._expert_rows: Copies

    def dispatch_preprocess(
        self, hidden_states: torch.Tensor, routing_map: torch.Tensor, probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Exchanges the counts and plans both hops; `[s, b, h]` → `[T, h]`, `[T, X]` as it is.

        Raises:
            UserError: a token needs more nodes than the router's groups allow.
        """
        self._hidden_shape = hidden_states.shape
        counts = self.links.everyone.gather(
            count_routing(routing_map, self.topology), "exchange of token counts"
        )
        splits = split_sizes(counts, self.topology, self.ep_rank)
        if self.node_limit is not None and splits.widest > self.node_limit:
            where = "" if self.layer_number is None else f" in layer {self.layer_number}"
            raise UserError(
                f"a token{where} is routed to {splits.widest} nodes, and moe_router_group_topk "
                f"allows {self.node_limit}: the router does not keep to its groups"
            )
        self._exchange = Exchange(self.links, routing_map, splits, fp8=self.fp8)
        return hidden_states.reshape(-1, hidden_states.shape[-1]), probs

    def dispatch_start(self, hidden_states: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        """Sends tokens `[T, h]` and weights `[T, X]` on their way.

        Returns:
            A ticket for `dispatch_finish`: an empty tensor that carries the autograd graph. In the
            backward the same halves run mirrored: `dispatch_finish` starts sending gradients and
            `dispatch_start` receives them, so work placed between the two is hidden both ways.
        """
        return _DispatchStart.apply(self._exchange, hidden_states, probs)

    def dispatch_finish(self, ticket: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows `[R, h]` for this rank's experts, and their weights `[R, X / E]`."""
        return _DispatchFinish.apply(self._exchange, ticket)

    def token_dispatch(
        self, hidden_states: torch.Tensor, probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both halves of the dispatch, with the shared expert's first product between them."""
        ticket = self.dispatch_start(hidden_states, probs)
        if self.shared_experts is not None:
            self.shared_experts.pre_forward_comm(hidden_states.view(self._hidden_shape))
            self.shared_experts.linear_fc1_forward_and_act()
        return self.dispatch_finish(ticket)

    def dispatch_postprocess(
        self, hidden_states: torch.Tensor, probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows sorted by expert: `[P, h]`, tokens per local expert `[X / E]`, weights `[P]`."""
        per_expert = self._exchange.splits.per_expert
        self._expert_rows = Copies(probs.detach() != NOT_ROUTED, sum(per_expert))
        return (
            _CopyRows.apply(hidden_states, self._expert_rows),
            torch.tensor(per_expert),
            self._expert_rows.take_slots(probs).squeeze(1),
        )

    def combine_preprocess(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Weighted outputs of the experts `[P, h]` → one partial sum per row `[R, h]`."""
        return _SumRows.apply(hidden_states, self._expert_rows)

    def combine_start(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Sends partial sums `[R, h]` back; returns a ticket, as `dispatch_start` does."""
        return _CombineStart.apply(self._exchange, hidden_states)

    def combine_finish(self, ticket: torch.Tensor) -> torch.Tensor:
        """The sums per token `[T, h]`."""
        return _CombineFinish.apply(self._exchange, ticket)

    def token_combine(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Both halves of the combine, with the shared expert's second product between them."""
        ticket = self.combine_start(hidden_states)
        if self.shared_experts is not None:
            self.shared_experts.linear_fc2_forward()
            self.shared_experts.post_forward_comm()
        return self.combine_finish(ticket)

    def combine_postprocess(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[T, h]` → `[s, b, h]`, the shared expert added where it was hidden behind the hops."""
        output = hidden_states.view(self._hidden_shape)
        if self.shared_experts is not None:
            output = output + self.shared_experts.get_output()
        return output


class _CopyRows(torch.autograd.Function):
    """A row per expert that needs it; the gradient is summed as `Copies` sums, in FP32."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, copies: Copies) -> torch.Tensor:
        ctx.copies = copies
        return copies.take(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.copies.sum(gradient), None


class _SumRows(torch.autograd.Function):
    """The other way: experts' outputs summed per row; the gradient is copied."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, copies: Copies) -> torch.Tensor:
        ctx.copies = copies
        return copies.sum(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.copies.take(gradient), None


class _DispatchStart(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, exchange: Exchange, hidden: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        ctx.exchange = exchange
        exchange.launch(exchange.fan_out(hidden, weights, "dispatch"))
        return hidden.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: torch.Tensor) -> tuple[None, torch.Tensor, torch.Tensor | None]:
        return None, *ctx.exchange.in_flight.finish()


class _DispatchFinish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exchange: Exchange, ticket: torch.Tensor) -> Any:
        ctx.exchange = exchange
        return exchange.in_flight.finish()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, rows: torch.Tensor, weights: torch.Tensor) -> tuple[None, torch.Tensor]:
        exchange = ctx.exchange
        exchange.launch(exchange.fan_in(rows, weights, "backward of dispatch"))
        return None, rows.new_empty(0)


class _CombineStart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exchange: Exchange, rows: torch.Tensor) -> torch.Tensor:
        ctx.exchange = exchange
        exchange.launch(exchange.fan_in(rows, None, "combine"))
        return rows.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, ctx.exchange.in_flight.finish()[0]


class _CombineFinish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exchange: Exchange, ticket: torch.Tensor) -> torch.Tensor:
        ctx.exchange = exchange
        sums, _ = exchange.in_flight.finish()
        # On a group of one this is the tensor that `combine_start` was given: its own graph stays.
        return sums.view_as(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        exchange = ctx.exchange
        exchange.launch(exchange.fan_out(gradient, None, "backward of combine"))
        return None, gradient.new_empty(0)


@functools.cache
def _say_once(note: str | None) -> None:
    if note is not None and dist.get_rank() == 0:
        logging.getLogger(__name__).warning(note)


def one_node_note(topology: Topology) -> str | None:
    """What to tell a user who asked for FP8 on one node; None where tokens leave it or stay put."""
    if topology.nodes > 1 or topology.ranks == 1:
        return None
    return (
        f"dispatch.precision: fp8 is for what crosses nodes, and the {topology.ranks} "
        f"expert-parallel ranks are on one node: tokens travel unquantised; to have the numbers "
        f"of several nodes here, set dispatch.ranks_per_node below {topology.ranks}"
    )


def _refuse_unsupported(config: TransformerConfig, expert_tensor_parallel: int) -> None:
    wanted = "dispatch.kind: two_hop"
    if expert_tensor_parallel > 1:
        raise UserError(f"{wanted} needs expert tensor parallelism 1, not {expert_tensor_parallel}")
    if config.moe_expert_capacity_factor is not None:
        raise UserError(f"{wanted} drops no token: leave out moe_expert_capacity_factor")
    if config.moe_router_padding_for_quantization:
        raise UserError(
            f"{wanted} leaves padding to the experts: leave out moe_router_padding_for_quantization"
        )
