"""The output head where Apex is not installed: built, and its gradient in its sum."""

import types

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.tensor_parallel import layers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import dsv3_plugin
from dsv3_plugin.model.build import build_model
from dsv3_plugin.model.head import WeightGradientKernels
from dsv3_plugin.model.linear import WeightGradients
from dsv3_plugin.pipeline.split_backward import SplitBackward
from tests import oracles

# Widths that a grouped product takes in BF16 too.
MODEL = oracles.model_config(
    mtp_num_layers=1, moe_ffn_hidden_size=24, moe_shared_expert_intermediate_size=48
)


@pytest.fixture(autouse=True)
def _registered():
    dsv3_plugin.register()
    yield
    dsv3_plugin.unregister()


def built(*, fused: bool, dtype: torch.dtype = torch.float32):
    model = build_model(MODEL, dtype=dtype, gradient_accumulation_fusion=fused)
    oracles.randomize(model, seed=2)
    return model.train()


def in_buffers(model, **settings):
    wrapped = DistributedDataParallel(
        model.config, DistributedDataParallelConfig(**settings), model
    )
    wrapped.zero_grad_buffer()
    return wrapped


def losses(model, count=3):
    draw = torch.Generator().manual_seed(0)
    for _ in range(count):
        tokens = torch.randint(96, (2, 17), generator=draw)
        inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        positions = torch.arange(16).expand_as(inputs)
        yield model(inputs, positions, None, labels=labels).float().mean()


def expected_gradient():
    model = built(fused=False)
    for loss in losses(model):
        loss.backward()
    return model.output_layer.weight.grad


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_micro_batches_add_up_in_the_buffer(overlap, late):
    # The main head's gradient and that of multi-token prediction, which calls it a second time.
    model = built(fused=True)
    wrapped = in_buffers(
        model, grad_reduce_in_fp32=True, overlap_grad_reduce=overlap, delay_wgrad_compute=overlap
    )
    split = SplitBackward(model)
    with wrapped.no_sync():
        for loss in losses(wrapped):
            with split.keeping_weights_owed(late):
                loss.backward()
            if late:
                split.weights()
    weight = model.output_layer.weight
    torch.testing.assert_close(weight.main_grad, expected_gradient(), rtol=1e-5, atol=1e-7)
    assert weight.grad is None


def test_a_buffer_of_the_weights_own_type_takes_it_too():
    gradients = []
    for fused in (False, True):
        model = built(fused=fused, dtype=torch.bfloat16)
        wrapped = in_buffers(model, grad_reduce_in_fp32=False)
        for loss in losses(wrapped):
            loss.backward()
        gradients.append(model.output_layer.weight.main_grad.float())
    assert model.output_layer.weight.main_grad.dtype == torch.bfloat16
    unfused, fused = gradients
    # Six sums; unfused, each product is rounded to BF16 before it is added.
    assert (fused - unfused).norm() < 6 * 2**-8 * unfused.norm()


class _Recorded(TorchDispatchMode):
    """The operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_bf16_product_goes_into_an_fp32_sum_on_a_gpu():
    # In one kernel: nothing of the gradient's size beside the sum, nothing rounded to BF16.
    with FakeTensorMode(), torch.device("cuda"):
        total = torch.zeros(96, 32)
        rows = torch.zeros(64, 32, dtype=torch.bfloat16)
        gradients = torch.zeros(64, 96, dtype=torch.bfloat16)
        with _Recorded() as recorded:
            WeightGradientKernels.wgrad_gemm_accum_fp32(rows, gradients, total)
    assert total.dtype == torch.float32
    kernels = [name for name in recorded.names if not name.startswith("prim.")]
    assert kernels == ["aten.t.default", "aten.addmm.dtype_out"]


def test_the_head_owes_nothing():
    # To wait, it would keep the gradient of the logits.
    head = built(fused=True).output_layer
    assert not isinstance(getattr(head, "weight_gradients", None), WeightGradients)
    assert head.gradient_accumulation_fusion
    assert head.config.gradient_accumulation_fusion


def test_without_the_patch_upstream_refuses():
    dsv3_plugin.unregister()
    with pytest.raises(RuntimeError, match="install APEX"):
        built(fused=True)


def test_with_apex_its_kernel_is_the_one_that_runs(monkeypatch):
    calls = []

    def wgrad_gemm_accum_fp32(total_input, grad_output, main_grad):
        calls.append(main_grad)
        main_grad.addmm_(grad_output.t(), total_input)

    apex = types.SimpleNamespace(wgrad_gemm_accum_fp32=wgrad_gemm_accum_fp32)
    dsv3_plugin.unregister()
    monkeypatch.setattr(layers, "fused_weight_gradient_mlp_cuda", apex, raising=False)
    monkeypatch.setattr(layers, "_grad_accum_fusion_available", True)
    dsv3_plugin.register()
    model = built(fused=True)
    wrapped = in_buffers(model, grad_reduce_in_fp32=True)
    for loss in losses(wrapped):
        loss.backward()
    weight = model.output_layer.weight
    assert len(calls) == 6  # the head and multi-token prediction, of three micro-batches
    assert all(main_grad is weight.main_grad for main_grad in calls)
    torch.testing.assert_close(weight.main_grad, expected_gradient(), rtol=1e-5, atol=1e-7)
