"""The quantiser against a naive per-block loop, torch's own cast and transformers' dequantiser."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from dsv3_plugin.errors import UserError
from dsv3_plugin.fp8.quantize import (
    E4M3,
    REVERSIBLE,
    dequantize_blocks,
    dequantize_tiles,
    quantize_blocks,
    quantize_tiles,
    requantize_blocks,
)

FLOAT32_ULP = 2.0**-23


def random_matrix(n: int, k: int, spread: float, seed: int) -> torch.Tensor:
    """Normal values times a lognormal factor per element, so that blocks differ in range."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, k, generator=generator)
    return values * torch.exp(spread * torch.randn(n, k, generator=generator))


def naive_blocks(x: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """DeepSeek's rule, one block at a time: scale = max/448, values = cast(x / scale)."""
    values = torch.empty(x.shape, dtype=E4M3)
    scales = torch.empty(-(-x.shape[0] // rows), -(-x.shape[1] // columns))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = x[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].float()
            scale = block.abs().max() / 448.0
            scales[i, j] = scale if scale > 0 else 1.0
            values[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = (
                block / scales[i, j]
            ).to(E4M3)
    return values, scales


matrices = st.builds(
    random_matrix,
    n=st.integers(1, 300),
    k=st.integers(1, 300),
    spread=st.sampled_from([0.0, 1.0, 4.0]),
    seed=st.integers(0, 2**31),
)


@settings(max_examples=40)
@given(x=matrices, block=st.sampled_from([16, 100, 128]))
def test_blocks_are_those_of_the_naive_loop(x, block):
    values, scales = quantize_blocks(x, block)
    expected_values, expected_scales = naive_blocks(x, block, block)
    # The fixed-point step may move a scale by one unit in the last place, and with it a value that
    # lay on the boundary between two codes to the neighbouring code.
    torch.testing.assert_close(scales, expected_scales, rtol=FLOAT32_ULP, atol=0)
    codes, expected = values.view(torch.uint8).int(), expected_values.view(torch.uint8).int()
    assert int((codes - expected).abs().max()) <= 1
    assert float((codes != expected).float().mean()) < 0.01


@settings(max_examples=40)
@given(x=matrices)
def test_tiles_are_those_of_the_naive_loop(x):
    values, scales = quantize_tiles(x)
    _, expected_scales = naive_blocks(x, 1, 128)
    torch.testing.assert_close(scales, expected_scales, rtol=FLOAT32_ULP, atol=0)
    restored = dequantize_tiles(values, scales, torch.float32)
    # E4M3 keeps 3 bits after the leading one: half a unit is 2^-4 relative, or 2^-10 of the scale
    # below the smallest normal number (2^-6).
    bound = torch.maximum(
        x.abs() * 2.0**-4, scales.repeat_interleave(128, 1)[:, : x.shape[1]] / 1024
    )
    assert bool(((restored - x).abs() <= bound * (1 + 1e-6)).all())


@settings(max_examples=40)
@given(x=matrices, power_of_two=st.booleans(), tiles=st.booleans())
def test_quantising_again_changes_nothing(x, power_of_two, tiles):
    quantise = quantize_tiles if tiles else quantize_blocks
    dequantise = dequantize_tiles if tiles else dequantize_blocks
    values, scales = quantise(x, power_of_two=power_of_two)
    again, scales_again = quantise(
        dequantise(values, scales, out_dtype=torch.float32), power_of_two=power_of_two
    )
    assert torch.equal(values.view(torch.uint8), again.view(torch.uint8))
    assert torch.equal(scales, scales_again)


@settings(max_examples=20)
@given(x=matrices)
def test_power_of_two_values_pass_through_bfloat16_unharmed(x):
    values, scales = quantize_tiles(x, power_of_two=True)
    exact = dequantize_tiles(values, scales, torch.float32)
    assert torch.equal(dequantize_tiles(values, scales, torch.bfloat16).float(), exact)
    mantissa, _ = torch.frexp(scales)
    assert bool((mantissa == 0.5).all())


def test_every_scale_mantissa_is_a_fixed_point():
    # All the maxima between 1 and 2 on a fine grid: both regimes of rounding through 448.
    x = 1.0 + torch.arange(2**16).float()[:, None] / 2**16 + FLOAT32_ULP * 77
    for power_of_two in (False, True):
        values, scales = quantize_tiles(x, power_of_two=power_of_two)
        _, again = quantize_tiles(
            dequantize_tiles(values, scales, torch.float32), power_of_two=power_of_two
        )
        assert torch.equal(scales, again)
        codes = values.float()
        assert float(codes.max()) == 448.0
        assert float(codes.min()) == (240.0 if power_of_two else 448.0)


@settings(max_examples=25)
@given(
    blocks=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_dequantised_blocks_equal_transformers(blocks, dtype, seed):
    x = random_matrix(blocks[0] * 128, blocks[1] * 128, 2.0, seed)
    values, scales = quantize_blocks(x)
    oracle = Fp8Dequantize(None)._dequantize_one(values, scales, output_dtype=dtype)
    assert torch.equal(dequantize_blocks(values, scales, out_dtype=dtype), oracle)


def test_every_code_reads_as_torch_reads_it():
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3).view(1, 256)
    read = dequantize_tiles(codes, torch.ones(1, 2), torch.float32)
    torch.testing.assert_close(read, codes.float(), rtol=0, atol=0, equal_nan=True)


@settings(max_examples=60)
@given(
    scale=st.floats(*REVERSIBLE, width=32) | st.sampled_from([*REVERSIBLE, 1.0]),
    sign=st.sampled_from([-1.0, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_every_code_comes_back_under_every_reversible_scale(scale, sign, dtype):
    # Both NaNs and both zeros too; the width leaves a ragged edge.
    codes = torch.arange(256, dtype=torch.uint8).repeat(3).view(E4M3).view(4, 192)
    scales = torch.full((1, 2), sign * scale)
    restored = requantize_blocks(dequantize_blocks(codes, scales, out_dtype=dtype), scales)
    assert torch.equal(restored.view(torch.uint8), codes.view(torch.uint8))


@pytest.mark.parametrize("scale", [0.0, 1e-42, 3e37, 3.4e38])
def test_zeros_and_nans_come_back_under_any_scale(scale):
    codes = torch.tensor([0x00, 0x80, 0x7F, 0xFF], dtype=torch.uint8).repeat(32).view(1, 128)
    scales = torch.full((1, 1), scale)
    for dtype in (torch.float32, torch.bfloat16):
        values = dequantize_blocks(codes.view(E4M3), scales, out_dtype=dtype)
        assert torch.equal(requantize_blocks(values, scales).view(torch.uint8), codes)


def test_ragged_edges_ignore_what_lies_beyond():
    x = random_matrix(129, 385, 1.0, 3)
    values, scales = quantize_blocks(x)
    assert scales.shape == (2, 4)
    corner, corner_scale = quantize_blocks(x[128:, 384:])
    assert torch.equal(scales[1:, 3:], corner_scale)
    assert torch.equal(values[128:, 384:].float(), corner.float())


def test_shapes_dtypes_and_leading_axes():
    x = random_matrix(6, 200, 1.0, 4).bfloat16().view(2, 3, 200)
    values, scales = quantize_tiles(x)
    assert values.shape == x.shape
    assert scales.shape == (2, 3, 2)
    assert scales.dtype == torch.float32
    assert dequantize_tiles(values, scales).dtype == torch.bfloat16
    for rows in (0, 1):
        values, scales = quantize_tiles(torch.zeros(rows, 200))
        assert torch.equal(dequantize_tiles(values, scales), torch.zeros(rows, 200).bfloat16())
        assert torch.equal(scales, torch.ones(rows, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_a_non_finite_value_poisons_its_own_block_only(bad, power_of_two):
    x = torch.ones(4000, 200)  # several slices, ragged columns
    x[1, 3] = bad
    values, scales = quantize_tiles(x, power_of_two=power_of_two)
    restored = dequantize_tiles(values, scales, torch.float32)
    assert bool(restored[1, :128].isnan().all())
    assert int(restored.isnan().sum()) == 128


@pytest.mark.parametrize("power_of_two", [False, True])
# Around the points where a code, a scale or its clamp changes; the last is FP32's own limit.
@pytest.mark.parametrize("largest", [1.0, 1.5, 464 / 256, 1.82, 1.9375, 1.95, 2 - FLOAT32_ULP])
def test_every_magnitude_of_float32_stays_finite_and_idempotent(largest, power_of_two):
    powers = 2.0 ** torch.arange(-149, 128).double()
    x = (torch.linspace(-largest, largest, 128).double() * powers[:, None]).float()
    values, scales = quantize_tiles(x, power_of_two=power_of_two)
    restored = dequantize_tiles(values, scales, torch.float32)
    assert bool(restored.isfinite().all())
    again, scales_again = quantize_tiles(restored, power_of_two=power_of_two)
    assert torch.equal(again.view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(scales_again, scales)
    # Rounded as E4M3 rounds, or by half the smallest code under the smallest scale.
    bound = torch.maximum(x.abs() * 2.0**-4, scales / 1024).clamp(min=2.0**-127)
    assert bool(((restored - x).abs() <= bound * (1 + 1e-6)).all())
    zeros = (values.float() == 0).all(1)
    assert bool((scales[zeros] == 1).all())
    assert int(zeros.sum()) == int((x.abs().amax(1) <= 2.0**-127).sum())


def test_the_result_may_be_written_in_place():
    x = random_matrix(300, 260, 1.0, 5)
    values, scales = quantize_blocks(x)
    out = torch.empty(300, 260)
    assert dequantize_blocks(values, scales, out_dtype=torch.float32, out=out) is out
    assert torch.equal(out, dequantize_blocks(values, scales, out_dtype=torch.float32))


def test_scales_that_do_not_fit_are_refused():
    values, scales = quantize_blocks(torch.ones(129, 128))
    with pytest.raises(UserError, match=r"need scales \[2, 1\], got \[1, 1\]"):
        dequantize_blocks(values, scales[:1])
    with pytest.raises(UserError, match="expected float8_e4m3fn"):
        dequantize_blocks(values.float(), scales)
