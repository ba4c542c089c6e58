"""Routing as DeepSeek computes it, where upstream's differs: groups, counts, balance losses."""

import pytest
import torch
from megatron.core.distributed.finalize_model_grads import _update_router_expert_bias
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
from megatron.core.transformer.moe.router import TopKRouter

from dsv3_plugin.errors import UserError
from dsv3_plugin.model.config import transformer_config
from dsv3_plugin.model.router import DeepSeekRouter
from tests import oracles

V2 = {
    "moe_router_score_function": "softmax",
    "moe_router_pre_softmax": True,
    "moe_router_enable_expert_bias": False,
}


def router(dtype=torch.float32, overrides=None, **changes):
    model = oracles.model_config(**changes)
    config = transformer_config(model, dtype=dtype, **(overrides or {}))
    made = DeepSeekRouter(config, ProcessGroupCollection.use_mpu_process_groups())
    made.set_layer_number(1)
    return made


def route(made, tokens=(24, 3), seed=0):
    """Logits [s, b, experts] with the gradient kept, and what the router makes of them."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(*tokens, made.num_experts, generator=draw, requires_grad=True)
    return logits, *made.routing(logits)


@pytest.mark.parametrize(("experts", "groups", "allowed", "topk"), [(16, 4, 2, 6), (32, 8, 3, 6)])
def test_no_token_leaves_its_allowed_groups(experts, groups, allowed, topk):
    made = router(
        num_moe_experts=experts,
        moe_router_num_groups=groups,
        moe_router_group_topk=allowed,
        moe_router_topk=topk,
    )
    _, probs, routing_map = route(made)
    used = routing_map.view(-1, groups, experts // groups).any(-1).sum(-1)
    assert int(used.max()) <= allowed
    assert routing_map.sum(-1).eq(topk).all()
    assert torch.equal(probs > 0, routing_map)


def test_equals_upstream_where_upstream_is_right():
    shape = {"num_moe_experts": 32, "moe_router_num_groups": 8, "moe_router_group_topk": 4,
             "moe_router_topk": 8}  # fmt: skip
    made = router(**shape)
    upstream = TopKRouter(made.config, ProcessGroupCollection.use_mpu_process_groups())
    upstream.load_state_dict(made.state_dict())
    for ours, theirs in zip(route(made)[1:], route(upstream)[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.fixture
def kernel(monkeypatch):
    """Upstream's own routing in the place of Transformer Engine's kernel; what was asked of it."""
    asked = []

    def fused_topk_with_score_function(**settings):
        asked.append(settings)
        return topk_routing(**settings)

    topk_routing = moe_utils.topk_routing_with_score_function
    monkeypatch.setattr(moe_utils, "HAVE_TE", True)
    monkeypatch.setattr(
        moe_utils, "fused_topk_with_score_function", fused_topk_with_score_function, raising=False
    )
    return asked


def test_the_fused_kernel_routes_a_v3_to_the_same_end(kernel):
    shape = {"num_moe_experts": 32, "moe_router_num_groups": 8, "moe_router_group_topk": 4,
             "moe_router_topk": 8}  # fmt: skip
    plain, fused = router(**shape), router(overrides={"moe_router_fusion": True}, **shape)
    fused.load_state_dict(plain.state_dict())
    bias = torch.randn(32, generator=torch.Generator().manual_seed(3)) / 8
    results = []
    for made in (plain, fused):
        made.expert_bias.copy_(bias)
        logits, probs, routing_map = route(made)
        (probs * torch.arange(32.0) / 32).sum().backward()
        results.append((probs, routing_map, logits.grad, made.local_tokens_per_expert))
    assert len(kernel) == 1
    assert kernel[0]["expert_bias"].dtype == torch.float32
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert results[1][3].dtype == torch.int64


def test_the_fused_kernel_leaves_padding_out(kernel):
    shape = {"num_moe_experts": 32, "moe_router_num_groups": 8, "moe_router_group_topk": 4,
             "moe_router_topk": 8}  # fmt: skip
    plain, fused = router(**shape), router(overrides={"moe_router_fusion": True}, **shape)
    fused.load_state_dict(plain.state_dict())
    for made in (plain, fused):
        logits = route(made)[0]
        made.local_tokens_per_expert.zero_()
        made.routing(logits, padded(logits, (24, 7, 15)))
    assert len(kernel) == 2
    assert int(fused.local_tokens_per_expert.sum()) == (24 + 7 + 15) * 8
    assert torch.equal(fused.local_tokens_per_expert, plain.local_tokens_per_expert)


def test_the_fused_kernel_is_not_asked_where_it_would_choose_otherwise(kernel):
    shape = {"moe_router_topk": 6, "moe_router_num_groups": 4, "moe_router_group_topk": 2}
    plain, fused = router(**shape), router(overrides={"moe_router_fusion": True}, **shape)
    fused.load_state_dict(plain.state_dict())
    assert torch.equal(route(plain)[2], route(fused)[2])
    assert not kernel


def balance_loss(logits, chosen, topk):
    """Equations 17 to 20 of arXiv 2412.19437 for one sequence, without α; `chosen` [s, experts]."""
    affinity = torch.sigmoid(logits)
    normalised = affinity / affinity.sum(-1, keepdim=True)
    fraction = chosen.float().mean(0) * affinity.shape[-1] / topk
    return (fraction * normalised.mean(0)).sum()


def top(scores, k):
    return torch.zeros_like(scores).scatter(-1, scores.topk(k).indices, 1.0)


def gradient_of_loss_in(made, logits, probs, coefficient):
    """The balance loss arrives as a gradient only: what comes out for a zero main gradient."""
    (gradient,) = torch.autograd.grad(probs, logits, torch.zeros_like(probs))
    return gradient / coefficient


def test_sequence_balance_loss_is_the_reports():
    made = router(moe_aux_loss_coeff=1e-3, moe_router_load_balancing_type="seq_aux_loss")
    logits, probs, _ = route(made)
    actual = gradient_of_loss_in(made, logits, probs, 1e-3)
    sequences = logits.detach().unbind(1)
    leaves = [s.clone().requires_grad_() for s in sequences]
    # Counted by unbiased, ungrouped affinity (equation 18); the mean over the batch's sequences.
    loss = sum(balance_loss(s, top(s.detach(), 4), 4) for s in leaves) / len(leaves)
    loss.backward()
    expected = torch.stack([leaf.grad for leaf in leaves], dim=1)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)
    logged = get_moe_metrics_tracker().metrics["seq_load_balancing_loss"].values.sum()
    torch.testing.assert_close(logged, loss.detach(), rtol=1e-5, atol=0)


def padded(logits, tokens):
    """True where a sequence [s, b] of so many tokens has padding."""
    return torch.arange(len(logits))[:, None] >= torch.tensor(tokens)


def test_padding_is_in_no_balance_loss():
    """Of sequences of other lengths: each balanced over its own tokens, and weighed by them."""
    made = router(moe_aux_loss_coeff=1e-3, moe_router_load_balancing_type="seq_aux_loss")
    logits, tokens = route(made)[0], (24, 7, 15)
    probs, _ = made.routing(logits, padded(logits, tokens))
    actual = gradient_of_loss_in(made, logits, probs, 1e-3)
    leaves = [
        sequence[:length].clone().requires_grad_()
        for sequence, length in zip(logits.detach().unbind(1), tokens, strict=True)
    ]
    losses = [balance_loss(leaf, top(leaf.detach(), 4), 4) for leaf in leaves]
    sum(loss * length / sum(tokens) for loss, length in zip(losses, tokens, strict=True)).backward()
    for number, leaf in enumerate(leaves):
        expected = torch.zeros(24, 16)
        expected[: len(leaf)] = leaf.grad
        torch.testing.assert_close(actual[:, number], expected, rtol=1e-4, atol=1e-7)


def v2_aux_loss(logits, chosen, topk, sequence_wise):
    """DeepSeek-V2's published `MoEGate`: `chosen` are the experts really used, groups and all."""
    experts = logits.shape[-1]
    scores = logits.softmax(-1)  # [b, s, experts]
    if sequence_wise:
        used = chosen.sum(1) / (logits.shape[1] * topk / experts)
        return (used * scores.mean(1)).sum(1).mean()
    used = chosen.flatten(0, 1).mean(0) / topk * experts
    return (scores.flatten(0, 1).mean(0) * used).sum()


@pytest.mark.parametrize("kind", ["seq_aux_loss", "aux_loss"])
def test_v2_balance_loss_counts_the_chosen_experts(kind):
    made = router(
        num_moe_experts=32, moe_router_num_groups=8, moe_router_group_topk=3, moe_router_topk=6,
        moe_aux_loss_coeff=1e-3, moe_router_load_balancing_type=kind, **V2,
    )  # fmt: skip
    logits, probs, routing_map = route(made)
    actual = gradient_of_loss_in(made, logits, probs, 1e-3)
    chosen = routing_map.view(*logits.shape).transpose(0, 1).float()
    assert not torch.equal(chosen, top(logits.detach().transpose(0, 1), 6))  # groups bind here
    leaf = logits.detach().transpose(0, 1).clone().requires_grad_()
    v2_aux_loss(leaf, chosen, 6, kind == "seq_aux_loss").backward()
    torch.testing.assert_close(actual, leaf.grad.transpose(0, 1), rtol=1e-4, atol=1e-7)


def test_counts_and_bias_survive_bf16():
    # 513 tokens of which 257 chose expert 0: in BF16 the count would be 256, and with a mean load
    # of 256.5 the bias would be pushed the wrong way.
    made = router(
        num_moe_experts=2, moe_router_topk=1,
        moe_router_num_groups=None, moe_router_group_topk=None,
    ).bfloat16()  # fmt: skip
    assert made.local_tokens_per_expert.dtype == torch.int64
    assert made.expert_bias.dtype == torch.float32
    logits = torch.zeros(513, 1, 2)
    logits[:257, 0, 0] = logits[257:, 0, 1] = 1.0
    made.routing(logits.requires_grad_())
    assert made.local_tokens_per_expert.tolist() == [257, 256]
    _update_router_expert_bias([made], made.config)
    assert made.expert_bias.tolist() == pytest.approx([-1e-3, 1e-3])


def test_casting_does_not_touch_the_bias():
    made = router()
    made.expert_bias.copy_(torch.rand(16) / 3)
    kept = made.expert_bias.clone()
    made.bfloat16().float()
    assert torch.equal(made.expert_bias, kept)


def test_no_counting_without_gradients_and_none_of_padding():
    made = router()
    logits = torch.randn(10, 2, 16)
    with torch.no_grad():
        made.routing(logits)
    assert int(made.local_tokens_per_expert.sum()) == 0
    padding = torch.zeros(10, 2, dtype=torch.bool)
    padding[6:] = True
    made.routing(logits, padding)
    assert int(made.local_tokens_per_expert.sum()) == 6 * 2 * made.topk


@pytest.mark.parametrize(
    "overrides",
    [{"moe_router_load_balancing_type": "sinkhorn"}, {"moe_expert_capacity_factor": 1.0}],
)
def test_what_deepseek_does_not_do_is_refused(overrides):
    with pytest.raises(UserError):
        router(overrides=overrides)


def test_logits_in_fp32_are_no_product_of_transformer_engines(monkeypatch):
    """Which rounds FP32 factors to the ten bits of TF32, as was seen on an H200."""
    asked = []

    def rounds(weight, inputs, dtype, **how):
        asked.append(inputs.dtype)
        return (inputs.to(dtype) @ weight.to(dtype).t(),)

    monkeypatch.setattr(moe_utils, "te_general_gemm", rounds)
    made = router()
    hidden = torch.randn(5, 1, made.config.hidden_size)
    expected = hidden.double() @ made.weight.detach().double().t()
    torch.testing.assert_close(made.gating(hidden).double(), expected, rtol=1e-5, atol=1e-6)
    assert not asked
    made.bfloat16().gating(hidden.bfloat16())
    assert asked == [torch.bfloat16]
