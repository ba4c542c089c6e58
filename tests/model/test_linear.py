"""Postponed weight gradients, with upstream's data parallelism and without."""

import weakref

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

from dsv3_plugin.model.build import build_model
from dsv3_plugin.model.linear import WeightGradients, backward_dw, postpone_weight_gradients
from tests import oracles

MODEL = oracles.model_config(mtp_num_layers=1)


def built():
    model = build_model(MODEL)
    oracles.randomize(model, seed=2)
    return model.train()


def micro_batches(count=3):
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(96, (2, 17), generator=draw) for _ in range(count)]


def loss_of(model, tokens):
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    positions = torch.arange(16).expand_as(inputs)
    return model(inputs, positions, None, labels=labels).mean()


def expected_gradients():
    model = built()
    for tokens in micro_batches():
        loss_of(model, tokens).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_equal(gradients, expected):
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_every_layer_weight_can_wait():
    # All matrices of the layers, MTP's included; what remains is small or shared: norms, router
    # gates, embedding and head.
    model = built()
    postpone_weight_gradients(model, True)
    loss_of(model, micro_batches()[0]).backward()
    immediate = {name for name, p in model.named_parameters() if p.grad is not None}
    rest = ("layernorm.weight", "norm.weight", "router.weight")
    assert all(
        name.endswith(rest) or name.startswith(("embedding", "output_layer")) for name in immediate
    ), immediate
    backward_dw(model)
    assert all(p.grad is not None for p in model.parameters())


def test_what_is_owed_keeps_no_input_of_the_layers_alive():
    model = built()
    postpone_weight_gradients(model, True)
    hidden = torch.randn(16, 2, MODEL.hidden_size, requires_grad=True)
    for layer in model.decoder.layers:
        layer(hidden, attention_mask=None)[0].sum().backward()
    left = weakref.ref(hidden)
    del hidden
    assert left() is None
    backward_dw(model.decoder)
    weight = model.decoder.layers[0].mlp.linear_fc1.weight
    assert weight.grad.abs().sum() > 0


def test_what_waits_goes_to_the_parameters_also_where_saved_tensors_are_kept_elsewhere():
    # Under such hooks autograd hands a backward other tensors than the parameters it was given.
    model = built()
    postpone_weight_gradients(model, True)
    for tokens in micro_batches():
        with torch.autograd.graph.save_on_cpu():
            loss = loss_of(model, tokens)
        loss.backward()
        backward_dw(model)
    assert_equal({name: p.grad for name, p in model.named_parameters()}, expected_gradients())


def test_outstanding_micro_batches_are_paid_in_order():
    model = built()
    for index, tokens in enumerate(micro_batches()):
        postpone_weight_gradients(model, index != 1)  # the second pays at once, in between
        loss_of(model, tokens).backward()
    owed = [m.weight_gradients for m in model.modules() if hasattr(m, "weight_gradients")]
    assert {len(o) for o in owed} == {2}
    backward_dw(model)
    backward_dw(model)
    assert {len(o) for o in owed} == {0}
    assert_equal({name: p.grad for name, p in model.named_parameters()}, expected_gradients())
    backward_dw(model)  # nothing owed, nothing done


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("postpone", [False, True])
@pytest.mark.parametrize("distributed_optimizer", [False, True])
def test_gradients_arrive_in_upstreams_buffers(overlap, postpone, distributed_optimizer):
    model = built()
    wrapped = DistributedDataParallel(
        model.config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=overlap,
            use_distributed_optimizer=distributed_optimizer,
            delay_wgrad_compute=overlap,
        ),
        model,
    )
    wrapped.zero_grad_buffer()
    postpone_weight_gradients(model, postpone)
    first, *rest = micro_batches()
    with wrapped.no_sync():
        for tokens in rest:
            loss_of(wrapped, tokens).backward()
            if postpone:
                backward_dw(model)
    loss_of(wrapped, first).backward()
    if postpone:
        backward_dw(model)
    wrapped.finish_grad_sync()
    gradients = {name: p.main_grad for name, p in model.named_parameters()}
    assert_equal(gradients, expected_gradients())
    assert all(p.grad is None for p in model.parameters())


def test_bf16_weights_accumulate_in_fp32():
    weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
    weight.main_grad = torch.zeros(2, 2)
    weight.grad_added_to_main_grad = False
    owed = WeightGradients(postpone=True)
    for value in (256.0, 1.0):
        owed.arrive([(weight, lambda out, v=value: torch.full_like(weight, v))])
    owed.pay_oldest()
    owed.pay_oldest()
    assert weight.main_grad.unique().tolist() == [257.0]
