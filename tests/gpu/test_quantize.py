"""The FP8 quantiser on a GPU gives the bytes of the CPU."""

import pytest
import torch

from dsv3_plugin.fp8.quantize import (
    dequantize_blocks,
    dequantize_tiles,
    quantize_blocks,
    quantize_tiles,
    requantize_blocks,
)


def matrix(rows: int, columns: int, spread: float) -> torch.Tensor:
    """Normal values times a lognormal factor per element, so that blocks differ in range."""
    draw = torch.Generator().manual_seed(rows + columns)
    values = torch.randn(rows, columns, generator=draw)
    return values * torch.exp(spread * torch.randn(rows, columns, generator=draw))


SHAPES = [(1, 1), (128, 128), (129, 385), (1000, 7168)]


def same(gpu: torch.Tensor, cpu: torch.Tensor) -> bool:
    return torch.equal(gpu.cpu().view(torch.uint8), cpu.view(torch.uint8))


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("quantise", [quantize_tiles, quantize_blocks])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_and_scales_are_those_of_the_cpu(shape, dtype, quantise, power_of_two):
    for spread in (0.0, 1.0, 8.0):
        x = matrix(*shape, spread).to(dtype)
        expected, expected_scales = quantise(x, power_of_two=power_of_two)
        codes, scales = quantise(x.cuda(), power_of_two=power_of_two)
        assert same(scales, expected_scales)
        assert same(codes, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_come_back_as_on_the_cpu(shape, dtype):
    codes, scales = quantize_blocks(matrix(*shape, 1.0))
    expected = dequantize_blocks(codes, scales, out_dtype=dtype)
    values = dequantize_blocks(codes.cuda(), scales.cuda(), out_dtype=dtype)
    assert same(values, expected)
    assert same(requantize_blocks(values, scales.cuda()), codes)
    codes, scales = quantize_tiles(matrix(*shape, 1.0))
    expected = dequantize_tiles(codes, scales, dtype)
    assert same(dequantize_tiles(codes.cuda(), scales.cuda(), dtype), expected)


@pytest.mark.parametrize("power_of_two", [False, True])
def test_quantising_again_changes_nothing(power_of_two):
    codes, scales = quantize_tiles(matrix(1000, 1024, 4.0).cuda(), power_of_two=power_of_two)
    values = dequantize_tiles(codes, scales, torch.float32)
    again, scales_again = quantize_tiles(values, power_of_two=power_of_two)
    assert torch.equal(scales, scales_again)
    assert torch.equal(codes.view(torch.uint8), again.view(torch.uint8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_value_poisons_its_own_tile_only(bad):
    x = torch.ones(300, 256, device="cuda")
    x[7, 3] = bad
    values = dequantize_tiles(*quantize_tiles(x), torch.float32)
    assert bool(values[7, :128].isnan().all())
    assert int(values.isnan().sum()) == 128
