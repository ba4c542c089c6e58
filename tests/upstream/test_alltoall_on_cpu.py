"""Upstream's own all-to-all dispatcher, unmodified but for the mend, on CPU ranks."""

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe import token_dispatcher
from megatron.core.transformer.transformer_config import TransformerConfig

from dsv3_plugin.upstream.alltoall_on_cpu import maybe_move_tensor_to_cpu
from tests.gloo_ranks import run_ranks

EXPERTS, TOPK, HIDDEN, TOKENS = 8, 3, 16, 13


def dispatch_through_scaling_experts(rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Expert e multiplies by (e + 1) · weight: output, its expected value, and the gradient."""
    token_dispatcher.maybe_move_tensor_to_cpu = maybe_move_tensor_to_cpu(
        token_dispatcher.maybe_move_tensor_to_cpu
    )
    groups = ProcessGroupCollection()
    alone = [dist.new_group([r]) for r in range(dist.get_world_size())][rank]
    groups.ep = groups.tp_ep = dist.group.WORLD
    groups.tp = groups.expt_tp = alone
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=2,
        num_moe_experts=EXPERTS,
        moe_router_topk=TOPK,
        moe_token_dispatcher_type="alltoall",
        expert_model_parallel_size=dist.get_world_size(),
        add_bias_linear=False,
    )
    local = EXPERTS // dist.get_world_size()
    mine = list(range(rank * local, (rank + 1) * local))
    dispatcher = token_dispatcher.MoEAlltoAllTokenDispatcher(local, mine, config, groups)

    torch.manual_seed(rank)
    hidden = torch.randn(TOKENS, 1, HIDDEN, requires_grad=True)
    scores = torch.rand(TOKENS, EXPERTS)
    routing_map = torch.zeros_like(scores, dtype=torch.bool).scatter_(
        1, scores.topk(TOPK).indices, True
    )
    weights = scores * routing_map

    rows, weights_out = dispatcher.dispatch_preprocess(hidden, routing_map, weights)
    rows, weights_out = dispatcher.token_dispatch(rows, weights_out)
    rows, counts, weights_out = dispatcher.dispatch_postprocess(rows, weights_out)
    factor = torch.repeat_interleave(torch.tensor(mine) + 1.0, counts)
    rows = dispatcher.combine_preprocess(rows * (factor * weights_out)[:, None])
    output = dispatcher.combine_postprocess(dispatcher.token_combine(rows))
    (gradient,) = torch.autograd.grad(output.sum(), hidden)

    total = (weights * (torch.arange(EXPERTS) + 1.0)).sum(1)[:, None, None]
    return output.detach(), (hidden * total).detach(), gradient - total


def test_tokens_reach_their_experts_and_come_back(tmp_path):
    for output, expected, gradient_error in run_ranks(
        2, dispatch_through_scaling_experts, scratch=tmp_path
    ):
        torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)
        assert float(gradient_error.abs().max()) < 1e-5
