"""DeepGEMM's rule for weights, against its definition on whole padded tensors."""

import pytest
import torch

from dsv3_plugin.fp8 import deepgemm
from dsv3_plugin.fp8.quantize import dequantize_blocks, quantize_blocks


def defined(weight: torch.Tensor, power_of_two: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`per_block_cast_to_fp8` as it is defined: everything at once, padded, and no slices."""
    n, k = weight.shape
    down, across = -(-n // 128), -(-k // 128)
    padded = torch.zeros(down * 128, across * 128)
    padded[:n, :k] = weight.float()
    grid = padded.reshape(down, 128, across, 128)
    scale = grid.abs().amax(dim=(1, 3), keepdim=True).clamp(1e-4) / 448.0
    if power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale.double()))).float()
    codes = (grid * (1.0 / scale)).to(torch.float8_e4m3fn)
    return codes.reshape(down * 128, across * 128)[:n, :k], scale.reshape(down, across)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(128, 128), (1, 1), (300, 200), (129, 4000)])
def test_bytes_are_those_of_the_definition(shape, dtype, power_of_two):
    draw = torch.Generator().manual_seed(shape[0])
    weight = torch.randn(shape, generator=draw)
    # Blocks of every size, zero among them.
    weight *= torch.logspace(-12, 3, shape[1])
    weight[:, : shape[1] // 10] = 0
    weight = weight.to(dtype)
    values, scales = deepgemm.quantize_blocks(weight, power_of_two=power_of_two)
    expected, expected_scales = defined(weight, power_of_two)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(values.view(torch.uint8), expected.contiguous().view(torch.uint8))


def both(weight: torch.Tensor, power_of_two: bool = False) -> tuple[float, float]:
    """The one scale that either rule gives a block."""
    ours, theirs = (
        rule(weight, power_of_two=power_of_two)[1].item()
        for rule in (quantize_blocks, deepgemm.quantize_blocks)
    )
    return ours, theirs


def test_a_small_block_keeps_its_values_with_us_alone():
    weight = torch.full((128, 128), 1e-7)
    weight[0, 0] = 1e-6
    assert both(weight) == pytest.approx((1e-6 / 448, 1e-4 / 448))
    weight = weight / 1e5
    assert dequantize_blocks(*quantize_blocks(weight)).count_nonzero() == weight.numel()
    assert not dequantize_blocks(*deepgemm.quantize_blocks(weight)).any()


def test_scale_of_zeros():
    assert both(torch.zeros(128, 128)) == (1.0, pytest.approx(1e-4 / 448))


@pytest.mark.parametrize(("largest", "ours", "theirs"), [(448, 1, 1), (464, 1, 2), (466, 2, 2)])
def test_a_maximum_just_beyond_448_with_powers_of_two(largest, ours, theirs):
    assert both(torch.full((128, 128), float(largest)), power_of_two=True) == (ours, theirs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_has_no_scale(bad):
    weight = torch.ones(128, 256)
    weight[3, 200] = bad
    scales = deepgemm.quantize_blocks(weight, power_of_two=True)[1]
    assert scales.isfinite().tolist() == [[True, False]]
