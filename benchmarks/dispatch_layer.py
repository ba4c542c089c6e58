"""A layer's exchange by every dispatcher, as one rank sees it: seconds, and bytes between nodes.

With experts that only weigh, so that what is timed is the exchange.
"""

import time
from typing import Any

import torch
import torch.distributed as dist
from dispatch_scenario import Sample, Scenario, bytes_sent

from dsv3_plugin.upstream import cpu_host

cpu_host.enable()

from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: E402
from megatron.core.transformer.moe import token_dispatcher  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

from dsv3_plugin.dispatch.topology import Topology  # noqa: E402
from dsv3_plugin.dispatch.traffic import Traffic, all_to_all_traffic  # noqa: E402
from dsv3_plugin.dispatch.two_hop import TwoHopTokenDispatcher  # noqa: E402
from dsv3_plugin.upstream.alltoall_on_cpu import maybe_move_tensor_to_cpu  # noqa: E402

EXPERTS, TOPK = 32, 8


def build_dispatchers(scenario: Scenario) -> dict[str, Any]:
    """Upstream's dispatcher, unmodified, and ours in both precisions, on the same group."""
    token_dispatcher.maybe_move_tensor_to_cpu = maybe_move_tensor_to_cpu(
        token_dispatcher.maybe_move_tensor_to_cpu
    )
    groups = ProcessGroupCollection()
    groups.ep = groups.tp_ep = dist.group.WORLD
    groups.expt_tp = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    config = TransformerConfig(
        num_layers=1,
        hidden_size=scenario.hidden,
        num_attention_heads=8,
        num_moe_experts=EXPERTS,
        moe_router_topk=TOPK,
        moe_router_num_groups=scenario.groups,
        moe_router_group_topk=scenario.groups,
        moe_token_dispatcher_type="alltoall",
        expert_model_parallel_size=scenario.ranks,
        add_bias_linear=False,
    )
    local = EXPERTS // scenario.ranks
    mine = list(range(dist.get_rank() * local, (dist.get_rank() + 1) * local))
    arguments = (local, mine, config, groups)
    placed = {"processes_per_node": scenario.believed or scenario.ranks_per_node}
    return {
        "alltoall": token_dispatcher.MoEAlltoAllTokenDispatcher(*arguments),
        "two_hop": TwoHopTokenDispatcher(*arguments, **placed),
        "two_hop fp8": TwoHopTokenDispatcher(*arguments, **placed, precision="fp8"),
    }


def measure(rank: int, scenario: Scenario) -> dict[str, list[Sample]]:
    """Samples per dispatcher, one a repeat."""
    dispatchers = build_dispatchers(scenario)
    generator = torch.Generator().manual_seed(rank)
    hidden = torch.randn(scenario.tokens, 1, scenario.hidden, generator=generator).bfloat16()
    scores = torch.rand(
        scenario.tokens, scenario.groups, EXPERTS // scenario.groups, generator=generator
    )
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen.scatter_(2, scores.topk(TOPK // scenario.groups, dim=2).indices, True)
    routing_map = chosen.view(scenario.tokens, EXPERTS)
    weights = scores.view(scenario.tokens, EXPERTS) * routing_map
    slope = torch.randn(hidden.shape, generator=generator).bfloat16()

    @torch.no_grad()
    def dispatch(dispatcher: Any) -> torch.Tensor:
        rows, probs = dispatcher.dispatch_preprocess(hidden, routing_map, weights)
        rows, probs = dispatcher.token_dispatch(rows, probs)
        return dispatcher.dispatch_postprocess(rows, probs)[0]

    def layer(dispatcher: Any) -> torch.Tensor:
        x, w = hidden.clone().requires_grad_(), weights.clone().requires_grad_()
        rows, probs = dispatcher.dispatch_preprocess(x, routing_map, w)
        rows, probs = dispatcher.token_dispatch(rows, probs)
        rows, _, probs = dispatcher.dispatch_postprocess(rows, probs)
        rows = dispatcher.combine_preprocess(rows * probs[:, None].to(rows.dtype))
        output = dispatcher.combine_postprocess(dispatcher.token_combine(rows))
        output.backward(slope)
        return output.detach()

    per_expert = [torch.empty(EXPERTS, dtype=torch.int64) for _ in range(scenario.ranks)]
    dist.all_gather(per_expert, routing_map.sum(0))
    topology = Topology(scenario.ranks, scenario.ranks_per_node, EXPERTS)
    foretold = all_to_all_traffic(
        torch.stack(per_expert), topology, rank, 2 * scenario.hidden, weights.element_size()
    )

    def counted(dispatcher: Any) -> int:
        ours = getattr(dispatcher, "traffic", None)
        return (ours.take() if ours else sum(foretold.values(), Traffic())).bytes["other_node"]

    exact = hidden.float() * weights.sum(1)[:, None, None]
    measured: dict[str, list[Sample]] = {name: [] for name in dispatchers}
    for repeat in range(scenario.repeats + 1):
        for name, dispatcher in dispatchers.items():
            dist.barrier()
            sent, start = bytes_sent(), time.perf_counter()
            output = (dispatch if scenario.alone else layer)(dispatcher)
            seconds = time.perf_counter() - start
            dist.barrier()
            sample = Sample(seconds, bytes_sent() - sent, counted(dispatcher))
            if repeat:  # the first makes connections
                measured[name].append(sample)
            if not scenario.alone:
                error = (output.float() - exact).norm() / exact.norm()
                assert error < 0.05, f"{name} computed something else: {error}"
    return measured
