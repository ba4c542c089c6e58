"""Routing beyond its limit, and peers that die or fall silent in the middle of an exchange."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

from dsv3_plugin.dispatch.link import Link
from dsv3_plugin.dispatch.two_hop import TwoHopTokenDispatcher
from dsv3_plugin.distributed import missing_ranks
from dsv3_plugin.errors import UserError
from tests.gloo_ranks import run_ranks

RANKS, EXPERTS, HIDDEN, TIMEOUT_S = 4, 8, 16, 6.0
CULPRIT = 3


def dispatcher_of(**changes) -> TwoHopTokenDispatcher:
    groups = ProcessGroupCollection()
    groups.ep = groups.tp_ep = dist.group.WORLD
    groups.expt_tp = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=2,
        num_moe_experts=EXPERTS,
        moe_router_topk=2,
        expert_model_parallel_size=RANKS,
        add_bias_linear=False,
    )
    for field, value in changes.items():
        setattr(config, field, value)
    local = EXPERTS // RANKS
    first = dist.get_rank() * local
    mine = list(range(first, first + local))
    return TwoHopTokenDispatcher(local, mine, config, groups, processes_per_node=2)


def dispatch_and_combine(dispatcher: TwoHopTokenDispatcher) -> torch.Tensor:
    hidden = torch.ones(6, 1, HIDDEN, requires_grad=True)
    routing_map = torch.zeros(6, EXPERTS, dtype=torch.bool)
    routing_map[:, ::3] = True  # experts 0, 3, 6: both nodes
    rows, probs = dispatcher.dispatch_preprocess(hidden, routing_map, routing_map.float())
    rows, probs = dispatcher.token_dispatch(rows, probs)
    rows, _, probs = dispatcher.dispatch_postprocess(rows, probs)
    rows = dispatcher.combine_preprocess(rows * probs[:, None])
    output = dispatcher.combine_postprocess(dispatcher.token_combine(rows))
    output.sum().backward()
    return output.detach()


def failure_of(rank: int, passage: str, dies: bool) -> str:
    """What a survivor says when the culprit is lost in `passage`."""
    missing_ranks._LOOK_EVERY_S = 0.5
    dispatcher = dispatcher_of()
    assert float(dispatch_and_combine(dispatcher)[0, 0, 0]) == 3.0
    if rank == CULPRIT:
        post, gather = Link.post, Link.gather

        def lost(original, link, *arguments):
            if arguments[-1] == passage:
                if dies:
                    os._exit(1)
                time.sleep(TIMEOUT_S + 2 * missing_ranks.SEARCH_S)
            return original(link, *arguments)

        Link.post = lambda *arguments: lost(post, *arguments)
        Link.gather = lambda *arguments: lost(gather, *arguments)
    try:
        dispatch_and_combine(dispatcher)
    except UserError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize(
    ("passage", "dies"),
    [
        ("exchange of token counts", True),
        ("dispatch between nodes", True),
        pytest.param("dispatch inside the node", False, marks=pytest.mark.long),
    ],
)
def test_a_lost_peer_is_named_in_time(tmp_path, passage, dies):
    answers = run_ranks(
        RANKS,
        failure_of,
        passage,
        dies,
        scratch=tmp_path,
        timeout_s=TIMEOUT_S,
        missing=(CULPRIT,) if dies else (),
    )
    for rank, sentence in enumerate(answers[:CULPRIT]):
        assert sentence.startswith(f"rank {rank} lost rank {CULPRIT} during the "), sentence


def beyond_the_limit(rank: int) -> str:
    dispatcher = dispatcher_of(moe_router_num_groups=4, moe_router_group_topk=1)
    dispatcher.layer_number = 5
    with pytest.raises(UserError) as error:
        dispatch_and_combine(dispatcher)
    return str(error.value)


def test_routing_beyond_the_node_limit_is_refused_everywhere(tmp_path):
    sentences = run_ranks(RANKS, beyond_the_limit, scratch=tmp_path)
    assert set(sentences) == {
        "a token in layer 5 is routed to 2 nodes, and moe_router_group_topk allows 1: the router "
        "does not keep to its groups"
    }


def refusals(rank: int) -> list[str]:
    sentences = []
    for changes in (
        {"moe_expert_capacity_factor": 1.0},
        {"moe_router_padding_for_quantization": True},
    ):
        with pytest.raises(UserError) as error:
            dispatcher_of(**changes)
        sentences.append(str(error.value))
    return sentences


def test_what_two_hop_cannot_do_is_refused(tmp_path):
    capacity, padding = run_ranks(RANKS, refusals, scratch=tmp_path)[0]
    assert "leave out moe_expert_capacity_factor" in capacity
    assert "leave out moe_router_padding_for_quantization" in padding
