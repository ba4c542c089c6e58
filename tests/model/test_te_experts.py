"""SwiGLU's input kept in FP8 and its output computed again: bytes, and gradients."""

import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from megatron.core.fusions.fused_bias_swiglu import weighted_bias_swiglu_impl
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput
from megatron.core.transformer.moe.experts import SequentialMLP, TEGroupedMLP

from dsv3_plugin.model.te_experts import RecomputingExperts, SwiGLUFromFP8, experts_for
from dsv3_plugin.upstream.recompute import checkpoint_without_output_init

ROWS, WIDTH = 64, 24


@pytest.fixture(autouse=True)
def _without_te(monkeypatch, world):
    init = checkpoint_without_output_init(CheckpointWithoutOutput.__init__)
    monkeypatch.setattr(CheckpointWithoutOutput, "__init__", init)


class Memory(bytearray):
    """What a tensor lies in, that says when it is let go."""


class FirstProduct(torch.autograd.Function):
    """Gate and up as the first product gives them: in memory of their own, which it keeps not."""

    @staticmethod
    def forward(ctx, gate_up, memory):
        return torch.frombuffer(memory, dtype=gate_up.dtype).view_as(gate_up).copy_(gate_up)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def experts(keep: str):
    """Output, gradients of gate and up, rows' weights and second product, and what was held.

    Args:
        keep: `input as computed` or `input in FP8`, upstream's own options, or `both`, as ours.
    """
    draw = torch.Generator().manual_seed(1)
    gate_up = torch.randn(ROWS, 2 * WIDTH, generator=draw).bfloat16().requires_grad_()
    weights = torch.rand(ROWS, 1, generator=draw).requires_grad_()
    second = torch.randn(WIDTH, 8, generator=draw).bfloat16().requires_grad_()
    in_fp8 = keep != "input as computed"
    swiglu = partial(weighted_bias_swiglu_impl, fp8_input_store=in_fp8)
    memory = Memory(2 * gate_up.numel())
    still_there = weakref.ref(memory)
    computed = FirstProduct.apply(gate_up, memory)
    del memory
    if keep == "input in FP8":
        output = swiglu(computed, None, weights) @ second
    else:
        checkpoint = SwiGLUFromFP8() if keep == "both" else CheckpointWithoutOutput()
        activated = checkpoint.checkpoint(swiglu, computed, None, weights)
        output = activated @ second
        checkpoint.discard_output_and_register_recompute(output)
        assert activated.untyped_storage().nbytes() == 0
    del computed
    held = still_there() is not None
    output.square().sum().backward()
    return SimpleNamespace(
        held=held, output=output, gradients=(gate_up.grad, weights.grad, second.grad)
    )


def test_gate_and_up_are_let_go_as_they_were_computed():
    assert experts("input as computed").held
    assert not experts("both").held


def test_the_forward_and_the_way_back_are_those_of_upstreams_own_option():
    ours, upstreams = experts("both"), experts("input in FP8")
    assert torch.equal(ours.output, upstreams.output)
    gate_up, weights, second = zip(ours.gradients, upstreams.gradients, strict=True)
    assert torch.equal(*gate_up)
    assert torch.equal(*weights)
    # Ours multiplies the output computed again, upstream's the one it kept.
    torch.testing.assert_close(*second, rtol=0, atol=2**-3 * float(second[1].abs().max()))


def test_gradients_differ_by_the_rounding_of_fp8():
    ours, exact = experts("both"), experts("input as computed")
    assert torch.equal(ours.output, exact.output)
    for mine, wanted in zip(ours.gradients, exact.gradients, strict=True):
        # Half a step of three bits behind the point for each value, about 2 % over many.
        error = (mine.float() - wanted.float()).norm() / wanted.float().norm()
        assert 0 < error < 2**-4


def test_what_saturates_keeps_a_finite_gradient():
    gate_up = torch.full((2, 4), 1e4).bfloat16().requires_grad_()
    checkpoint = SwiGLUFromFP8()
    swiglu = partial(weighted_bias_swiglu_impl, fp8_input_store=True)
    activated = checkpoint.checkpoint(swiglu, gate_up * 1, None, torch.ones(2, 1))
    output = activated * 1e-8
    checkpoint.discard_output_and_register_recompute(output)
    output.sum().backward()
    assert gate_up.grad.isfinite().all()


def test_nothing_is_made_again_in_an_evaluation():
    checkpoint = SwiGLUFromFP8()
    swiglu = partial(weighted_bias_swiglu_impl, fp8_input_store=True)
    with torch.no_grad():
        activated = checkpoint.checkpoint(
            swiglu, torch.ones(2, 4).bfloat16(), None, torch.ones(2, 1)
        )
        checkpoint.discard_output_and_register_recompute(activated * 2)


def config(recompute: list[str], *, fp8: bool):
    return SimpleNamespace(
        recompute_granularity="selective" if recompute else None,
        recompute_modules=recompute,
        activation_func_fp8_input_store=fp8,
    )


@pytest.mark.parametrize(
    ("recompute", "fp8", "ours"),
    [
        (["moe_act"], True, True),
        (["moe_act", "mla_up_proj"], True, True),
        (["mla_up_proj"], True, False),
        (["moe_act"], False, False),
        ([], True, False),
    ],
)
def test_they_stand_in_where_both_are_asked_for(recompute, fp8, ours):
    upstreams = partial(TEGroupedMLP, submodules="as upstream has them")
    chosen = experts_for(config(recompute, fp8=fp8), upstreams)
    assert chosen.func is (RecomputingExperts if ours else TEGroupedMLP)
    assert chosen.keywords == upstreams.keywords


def test_other_experts_stay():
    other = partial(SequentialMLP, submodules=None)
    assert experts_for(config(["moe_act"], fp8=True), other) is other


def test_upstreams_forward_recomputes_through_ours(monkeypatch):
    # It makes its checkpoint anew each time and uses it by the attribute's name.
    without_te = lambda self, *_, **__: torch.nn.Module.__init__(self)  # noqa: E731
    monkeypatch.setattr(TEGroupedMLP, "__init__", without_te)
    made = RecomputingExperts()
    for _ in range(2):
        made.activation_checkpoint = CheckpointWithoutOutput()
        assert isinstance(made.activation_checkpoint, SwiGLUFromFP8)
    used = {*TEGroupedMLP.forward.__code__.co_names}
    assert {"activation_checkpoint", "activation_recompute"} <= used
    assert {"checkpoint", "discard_output_and_register_recompute"} <= used
