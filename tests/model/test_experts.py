"""The stacked experts against upstream's SequentialMLP: values, gradients, checkpoints."""

import queue

import pytest
import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP

from dsv3_plugin.errors import UserError
from dsv3_plugin.model.config import transformer_config
from dsv3_plugin.model.experts import GroupedExperts
from dsv3_plugin.model.linear import backward_dw, postpone_weight_gradients
from tests import oracles
from tests.gloo_ranks import run_ranks

EXPERTS = 8


def config(dtype=torch.float32, experts=EXPERTS, ffn=24, **overrides):
    model = oracles.model_config(
        num_moe_experts=experts,
        moe_router_num_groups=None,
        moe_router_group_topk=None,
        moe_ffn_hidden_size=ffn,
        moe_shared_expert_intermediate_size=ffn,
    )
    return transformer_config(model, dtype=dtype, **overrides)


def ours(local=EXPERTS, **overrides):
    groups = ProcessGroupCollection.use_mpu_process_groups()
    return GroupedExperts(local, config(**overrides), groups)


def upstreams(local=EXPERTS, **overrides):
    groups = ProcessGroupCollection.use_mpu_process_groups()
    linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    return SequentialMLP(local, config(**overrides), linears, pg_collection=groups)


def pairs(mine, expert):
    """Our stacked weights, each with the linear layer of one of upstream's experts."""
    return (mine.weight1, expert.linear_fc1), (mine.weight2, expert.linear_fc2)


@torch.no_grad()
def copy_weights(theirs, mine):
    for e, expert in enumerate(theirs.local_experts):
        expert.linear_fc1.weight.copy_(mine.weight1[e])
        expert.linear_fc2.weight.copy_(mine.weight2[e])


def batch(dtype=torch.float32, counts=(5, 0, 3, 1, 7, 0, 2, 4), hidden=32):
    draw = torch.Generator().manual_seed(0)
    rows = sum(counts)
    x = torch.randn(rows, hidden, generator=draw).to(dtype).requires_grad_()
    probs = torch.rand(rows, generator=draw).requires_grad_()
    grad = torch.randn(rows, hidden, generator=draw).to(dtype)
    return x, torch.tensor(counts), probs, grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradients_equal_upstreams(dtype):
    mine, theirs = ours(dtype=dtype), upstreams(dtype=dtype)
    copy_weights(theirs, mine)
    results = []
    for experts in (mine, theirs):
        x, counts, probs, grad = batch(dtype)
        out, bias = experts(x, counts, probs)
        assert bias is None
        out.backward(grad)
        results.append((out.detach(), x.grad, probs.grad))
    # BF16: both round intermediate results, at different places.
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.05, "atol": 5e-3}
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **close)
    for e, expert in enumerate(theirs.local_experts):
        for weight, linear in pairs(mine, expert):
            expected = linear.weight.grad
            expected = torch.zeros_like(linear.weight) if expected is None else expected
            torch.testing.assert_close(weight.grad[e], expected, **close)


@pytest.mark.parametrize(("dtype", "ffn"), [(torch.float32, 22), (torch.bfloat16, 20)])
def test_rows_that_a_grouped_product_cannot_take_are_refused(dtype, ffn):
    with pytest.raises(UserError, match=f"moe_ffn_hidden_size to be a multiple .* not {ffn}:"):
        ours(dtype=dtype, ffn=ffn)


def test_no_rows_at_all():
    mine = ours()
    x, counts, probs, grad = batch(counts=(0,) * EXPERTS)
    out, _ = mine(x, counts, probs)
    out.backward(grad)
    assert out.shape == x.shape
    assert not mine.weight1.grad.any()


def test_weights_are_drawn_like_upstreams():
    mine = ours(experts=64, local=64)
    std = mine.config.init_method_std
    for weight in (mine.weight1, mine.weight2):
        assert abs(float(weight.std()) / std - 1) < 0.02
        assert not torch.equal(weight[0], weight[1])


def test_postponed_weight_gradients_are_paid_first_in_first_out():
    mine = ours()
    now = ours()
    now.load_state_dict(mine.state_dict())
    batches = [batch(counts=c) for c in ((5, 0, 3, 1, 7, 0, 2, 4), (1, 1, 1, 1, 1, 1, 1, 1))]
    postpone_weight_gradients(mine, True)
    for x, counts, probs, grad in batches:
        mine(x, counts, probs)[0].backward(grad)
    assert mine.weight1.grad is None
    for x, counts, probs, grad in batches:
        x, probs = x.detach().requires_grad_(), probs.detach().requires_grad_()
        now(x, counts, probs)[0].backward(grad)
        backward_dw(mine)
        torch.testing.assert_close(mine.weight1.grad, now.weight1.grad, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(mine.weight2.grad, now.weight2.grad, rtol=1e-6, atol=1e-7)
    assert len(mine.weight_gradients) == 0


def pass_checkpoints(rank, ep, directory):
    """On `ep` ranks, from ours to upstream's and back: what each pair of weights differs by."""
    # Upstream's has a process of its own, which outlives this one.
    filesystem_async.get_write_results_queue = lambda *args: queue.Queue()
    parallel_state.initialize_model_parallel(expert_model_parallel_size=ep)
    model_parallel_cuda_manual_seed(3)
    return [save_and_load(ep, directory / name, name == "ours") for name in ("ours", "upstreams")]


def save_and_load(ep, directory, ours_first):
    """Save one kind of experts, load it as the other; the largest difference, one weight."""
    if torch.distributed.get_rank() == 0:
        directory.mkdir()
    torch.distributed.barrier()
    made = [
        make(EXPERTS // ep, expert_model_parallel_size=ep, num_layers=3)
        for make in ((ours, upstreams) if ours_first else (upstreams, ours))
    ]
    offsets = ((0, 0, 1),)  # as upstream stacks layers: the only one
    sharded = [experts.sharded_state_dict("mlp.experts.", offsets, {}) for experts in made]
    dist_checkpointing.save(sharded[0], directory)
    loaded = dist_checkpointing.load(sharded[1], directory)
    state = {name.removeprefix("mlp.experts."): value for name, value in loaded.items()}
    made[1].load_state_dict(state)
    mine, theirs = made if ours_first else reversed(made)
    differences = [
        float((weight[e] - linear.weight).abs().max())
        for e, expert in enumerate(theirs.local_experts)
        for weight, linear in pairs(mine, expert)
    ]
    return max(differences), mine.weight1[0].detach()


def test_checkpoints_pass_both_ways(tmp_path):
    for results in zip(*run_ranks(2, pass_checkpoints, 2, tmp_path, scratch=tmp_path), strict=True):
        assert [difference for difference, _ in results] == [0.0, 0.0]
        # Ranks draw different experts: the RNG stream of the CPU host really is per rank.
        assert not torch.equal(results[0][1], results[1][1])


def test_parameters_are_one_sharded_tensor_each():
    # What upstream's distributed optimizer asks for: the state of a parameter under its tensor.
    mine = ours()
    sharded = mine.sharded_state_dict("mlp.experts.", (), {})
    tensors = {name: s for name, s in sharded.items() if name.endswith(("weight1", "weight2"))}
    assert tensors["mlp.experts.weight1"].data is mine.weight1
    assert tensors["mlp.experts.weight2"].data is mine.weight2
