"""Upstream's MoE layer with the dispatcher of the recipe, and with its load and traffic counted.

Upstream builds one of its own dispatchers by `config.moe_token_dispatcher_type`; the layer here
puts `two_hop` in its place where `configure_dispatch` said so, and keeps upstream's otherwise. For
every kind it counts tokens per expert, and for the two that run over torch.distributed the bytes
sent; `step_metrics.collect_step_metrics` takes both after a step.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe import fused_a2a
from megatron.core.transformer.moe import moe_layer as upstream
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.moe.shared_experts import SharedExpertState
from megatron.core.transformer.moe.token_dispatcher import (
    MoEAlltoAllTokenDispatcher,
    MoETokenDispatcher,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from dsv3_plugin.dispatch.kernels import KERNELS
from dsv3_plugin.dispatch.topology import RanksPerNode, launched_per_node
from dsv3_plugin.dispatch.traffic import Traffic, link_class
from dsv3_plugin.dispatch.two_hop import Precision, TwoHopTokenDispatcher
from dsv3_plugin.distributed.overlap import PerSide
from dsv3_plugin.distributed.packs import RoutedSamples
from dsv3_plugin.errors import UserError

Kind = Literal["alltoall", "two_hop", "deepep", "hybridep"]


@dataclass(frozen=True)
class Dispatch:
    """The recipe's `dispatch:` section, as it hangs on upstream's configuration.

    Attributes:
        hide_shared_expert: it computes between the halves of a hop of `two_hop`. Upstream's own
            option, `moe_shared_expert_overlap`, is off then (see `shared_expert`).
    """

    kind: Kind = "alltoall"
    ranks_per_node: RanksPerNode = "auto"
    precision: Precision = "bf16"
    hide_shared_expert: bool = False


def dispatch_of(config: TransformerConfig) -> Dispatch:
    """What `configure_dispatch` said; upstream's all-to-all where nobody did."""
    return getattr(config, "dispatch", Dispatch())


def configure_dispatch(
    config: TransformerConfig,
    kind: Kind = "alltoall",
    ranks_per_node: RanksPerNode = "auto",
    precision: Precision = "bf16",
    hide_shared_expert: bool = False,
) -> None:
    """Makes the MoE layers built from `config` use this dispatcher, in place.

    Args:
        config, kind, ranks_per_node, precision: as in the recipe's `dispatch:` section.
        hide_shared_expert: the shared expert computes while tokens travel: with `two_hop` on the
            stream of its caller, with upstream's dispatchers by upstream's option on a second one.

    Raises:
        UserError: the kernels of `deepep` or `hybridep` are not installed, or FP8 is asked of a
            dispatcher that has none.
    """
    if precision == "fp8" and kind != "two_hop":
        raise UserError(f"dispatch.precision: fp8 needs dispatch.kind: two_hop, not {kind}")
    usable = {"deepep": fused_a2a.HAVE_DEEP_EP, "hybridep": fused_a2a.HAVE_HYBRIDEP}
    if not usable.get(kind, True):
        raise UserError(KERNELS[kind].absent)
    if kind in KERNELS:
        config.moe_token_dispatcher_type = "flex"
        config.moe_flex_dispatcher_backend = kind
    else:
        config.moe_token_dispatcher_type = "alltoall"
    hides = config.moe_shared_expert_intermediate_size is not None and (
        hide_shared_expert or config.moe_shared_expert_overlap
    )
    in_two_hop = kind == "two_hop"
    if in_two_hop and hides and config.use_grouped_gemm_for_shared_expert:
        raise UserError(
            "dispatch.hide_shared_expert computes the shared expert in parts, and "
            "use_grouped_gemm_for_shared_expert in one kernel: leave out one of them"
        )
    config.dispatch = Dispatch(kind, ranks_per_node, precision, hides and in_two_hop)
    config.moe_shared_expert_overlap = hides and not in_two_hop


class MoELayer(upstream.MoELayer):
    """Takes the arguments of upstream's; stands in its place in the layer spec.

    Attributes:
        traffic: bytes and messages this rank sent since they were last taken; nothing is counted
            with upstream's flex dispatcher.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: upstream.MoESubmodules | None = None,
        layer_number: int | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
        name: str | None = None,
    ) -> None:
        pg_collection = pg_collection or get_default_pg_collection()
        super().__init__(config, submodules, layer_number, pg_collection, is_mtp_layer, name)
        wanted = dispatch_of(config)
        if wanted.kind == "two_hop":
            self.token_dispatcher = TwoHopTokenDispatcher(
                self.num_local_experts,
                self.local_expert_indices,
                config,
                pg_collection,
                processes_per_node=wanted.ranks_per_node,
                precision=wanted.precision,
            )
            if wanted.hide_shared_expert:
                self.shared_expert_overlap = True  # upstream's layer leaves it to the dispatcher
                self.token_dispatcher.shared_experts = self.shared_experts
        self._node_of = nodes_of_group(self.ep_group, wanted.ranks_per_node)
        self._load = _Load()
        self.samples: RoutedSamples | None = None
        self.padding_of_plan: Callable[[], torch.Tensor | None] | None = None
        """Asked by the router where upstream calls it without the mask `[s, b]` of padding."""
        self.traffic: Traffic = getattr(self.token_dispatcher, "traffic", Traffic())

    @property
    def token_dispatcher(self) -> MoETokenDispatcher:
        """The dispatcher of the side of an overlapped pair that runs; outside a pair, the one."""
        return self._dispatchers.here

    @token_dispatcher.setter
    def token_dispatcher(self, dispatcher: MoETokenDispatcher) -> None:
        self._dispatchers = PerSide(dispatcher, _second)

    def set_layer_number(self, layer_number: int) -> None:
        super().set_layer_number(layer_number)
        self.token_dispatcher.layer_number = layer_number

    def forward(
        self,
        hidden_states: torch.Tensor,
        intermediate_tensors: Any = None,
        padding_mask: torch.Tensor | RoutedSamples | None = None,
    ) -> Any:
        """Upstream's forward, of `[s, b, h]`; the router may be told of the samples of a pack."""
        if not isinstance(padding_mask, RoutedSamples):
            return super().forward(hidden_states, intermediate_tensors, padding_mask)
        # Upstream's hands on tensors alone. What it makes of this layer, and may call again in the
        # backward, is to know the samples of this micro-batch whatever comes meanwhile.
        layer = copy.copy(self)
        layer.samples = padding_mask
        return upstream.MoELayer.forward(layer, hidden_states, intermediate_tensors)

    def route(
        self, hidden_states: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Upstream's, by the samples where they are known."""
        if padding_mask is None and self.padding_of_plan is not None:
            padding_mask = self.padding_of_plan()
        probs, routing_map = super().route(hidden_states, self.samples or padding_mask)
        # Once per micro-batch: recomputation runs the forward twice, once of them without
        # gradients, and evaluation always without.
        if torch.is_grad_enabled():
            counted = routing_map.detach()
            if self.samples is not None:
                counted = counted & ~self.samples.padding[:, None]
            elif padding_mask is not None:
                counted = counted & ~padding_mask.reshape(-1, 1)
            self._load.add(counted)
        return probs, routing_map

    def take_load(self) -> torch.Tensor | int:
        """`[X]` int64, tokens this rank sent to each expert since the last call; 0 for none.

        Padding travels as well, and is not counted.

        Under tensor parallelism without sequence parallelism every rank of a group routes the same
        tokens, and only the first of them reports.
        """
        load = self._load.take()
        repeats = self.attn_tp_group.rank() > 0 and not self.config.sequence_parallel
        return 0 if repeats else load

    def dispatch(self, hidden_states: torch.Tensor, probs: torch.Tensor) -> Any:
        arrived = super().dispatch(hidden_states, probs)
        if isinstance(self.token_dispatcher, MoEAlltoAllTokenDispatcher) and len(self._node_of) > 1:
            self._count_all_to_all(hidden_states, probs)
        return arrived

    def _count_all_to_all(self, hidden: torch.Tensor, probs: torch.Tensor) -> None:
        """What upstream's dispatcher sends from here: forward now, and the backward to come."""
        dispatcher = self.token_dispatcher
        row = hidden.shape[1] * hidden.element_size()
        weight = probs.element_size()
        passes = [(dispatcher.input_splits, (row, weight)), (dispatcher.output_splits, (row,))]
        if torch.is_grad_enabled():
            passes += [(dispatcher.input_splits, (row,)), (dispatcher.output_splits, (row, weight))]
        me = dist.get_rank(self.ep_group)
        for peer in range(len(self._node_of)):
            link = link_class(self._node_of, me, peer)
            if peer != me:
                self.traffic.add(link, 8 * self.config.num_moe_experts)  # the token counts
            for rows, widths in passes:
                for width in widths:
                    self.traffic.add(link, int(rows[peer]) * width)


class _Load:
    """Tokens sent to each expert, padding aside."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | int = 0

    def add(self, routing_map: torch.Tensor) -> None:
        """Those of a micro-batch, bool `[t, experts]`."""
        self._sum = self._sum + routing_map.sum(0)

    def take(self) -> torch.Tensor | int:
        """All since the last call."""
        load, self._sum = self._sum, 0
        return load


def _second(dispatcher: MoETokenDispatcher) -> MoETokenDispatcher:
    """A dispatcher over the same groups, links, counters and weights, with a state of its own."""
    second = copy.copy(dispatcher)
    if second.shared_experts is not None:
        # They keep intermediate results likewise, and the first's may be in the middle by now.
        second.shared_experts = copy.copy(second.shared_experts)
        second.shared_experts._overlap_state = SharedExpertState.IDLE
    return second


def nodes_of_group(group: dist.ProcessGroup, setting: RanksPerNode) -> list[int]:
    """The node of every member of the group; all on one where nothing says otherwise.

    Raises:
        UserError: `auto`, and the launcher tells of nodes with different numbers of ranks.
    """
    ranks = dist.get_process_group_ranks(group)
    per_node = launched_per_node(os.environ) if setting == "auto" else setting
    if per_node is None:
        return [0] * len(ranks)
    return [rank // per_node for rank in ranks]
