"""The traffic that is counted, against the buffers that torch.distributed is given to send."""

import pytest
import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

from dsv3_plugin.dispatch.traffic import Traffic
from dsv3_plugin.dispatch.two_hop import TwoHopTokenDispatcher
from tests.gloo_ranks import run_ranks

RANKS, EXPERTS, HIDDEN, TOKENS = 4, 8, 136, 11


def link(peer: int, per_node: int) -> str:
    me = dist.get_rank()
    if peer == me:
        return "same_rank"
    return "same_node" if peer // per_node == me // per_node else "other_node"


def sent_and_counted(rank: int, per_node: int, precision: str) -> tuple[Traffic, Traffic]:
    """What one forward and backward hands to the collectives, and what the dispatcher counts."""
    sent = Traffic()
    exchange, gather = dist.all_to_all_single, dist.all_gather_single

    def seen_exchange(received, rows, receive, send, group, async_op):
        for peer, part in zip(dist.get_process_group_ranks(group), rows.split(send), strict=True):
            sent.add(link(peer, per_node), part.nbytes)
        return exchange(received, rows, receive, send, group=group, async_op=async_op)

    def seen_gather(everyone, values, group, async_op):
        for peer in dist.get_process_group_ranks(group):
            if peer != rank:
                sent.add(link(peer, per_node), values.nbytes)
        return gather(everyone, values, group=group, async_op=async_op)

    dist.all_to_all_single, dist.all_gather_single = seen_exchange, seen_gather
    groups = ProcessGroupCollection()
    groups.ep = groups.tp_ep = dist.group.WORLD
    groups.expt_tp = dist.new_group([rank], use_local_synchronization=True)
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=2,
        num_moe_experts=EXPERTS,
        moe_router_topk=2,
        expert_model_parallel_size=RANKS,
        add_bias_linear=False,
    )
    local = EXPERTS // RANKS
    mine = list(range(rank * local, (rank + 1) * local))
    dispatcher = TwoHopTokenDispatcher(
        local, mine, config, groups, processes_per_node=per_node, precision=precision
    )
    generator = torch.Generator().manual_seed(rank)
    routing_map = torch.rand(TOKENS, EXPERTS, generator=generator) < 0.15  # some rows are for none
    hidden = torch.randn(TOKENS, 1, HIDDEN, generator=generator).bfloat16().requires_grad_()
    weights = routing_map.float().requires_grad_()
    rows, probs = dispatcher.dispatch_preprocess(hidden, routing_map, weights)
    rows, probs = dispatcher.token_dispatch(rows, probs)
    rows, _, probs = dispatcher.dispatch_postprocess(rows, probs)
    rows = dispatcher.combine_preprocess((rows * probs[:, None]).to(hidden.dtype))
    dispatcher.combine_postprocess(dispatcher.token_combine(rows)).sum().backward()
    return sent, dispatcher.traffic.take()


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("per_node", [1, 2, 4])
def test_counted_traffic_is_what_the_collectives_are_given(tmp_path, per_node, precision):
    for sent, counted in run_ranks(RANKS, sent_and_counted, per_node, precision, scratch=tmp_path):
        assert counted == sent
        assert sum(sent.messages.values()) > RANKS
