"""The weight quantiser of DeepGEMM, for whoever has to have its very bytes.

DeepGEMM's `per_block_cast_to_fp8` (its `utils/math.py`) is what FP8 weights are mostly made with
elsewhere. `fp8.quantize` says where the two differ, and why ours is the one that the project
computes with.
"""

import torch

from dsv3_plugin.fp8.quantize import E4M3, E4M3_MAX, TILE, as_blocks, block_grid, slices

LEAST_MAX = 1e-4
"""No block counts as smaller than this."""


def quantize_blocks(
    weight: torch.Tensor, *, power_of_two: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises a weight in 128×128 squares:

        scale_inv = max(max|block|, 1e-4) / 448,        quantised = value × (1 / scale_inv)

    Args:
        weight: `[n, k]`, any floating dtype.
        power_of_two: scales are rounded up to powers of two (UE8M0).

    Returns:
        E4M3 values `[n, k]` and FP32 scales `[ceil(n / 128), ceil(k / 128)]`. A block that holds a
        NaN or an infinity has a scale that is none either.
    """
    weight, block = weight.detach(), (TILE, TILE)
    values = torch.empty(weight.shape, dtype=E4M3, device=weight.device)
    scales = torch.empty(block_grid(weight.shape, block), dtype=torch.float32, device=weight.device)
    columns = weight.shape[1]
    for rows, block_rows, scratch in slices(weight, block, torch.float32):
        height = rows.stop - rows.start
        scratch[:height, :columns] = weight[rows]
        blocks = as_blocks(scratch, block)
        scale = blocks.abs().amax(-1).amax(1).clamp(min=LEAST_MAX) / E4M3_MAX
        if power_of_two:
            scale = _next_power_of_two(scale)
        scales[block_rows] = scale
        blocks.mul_((1.0 / scale)[:, None, :, None])
        values[rows] = scratch[:height, :columns]
    return values, scales


def _next_power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """The smallest power of two that is no smaller; exact, as it is found among the bits."""
    bits = scale.view(torch.int32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0)
    rounded = (exponent << 23).view(torch.float32)
    return torch.where(scale.isfinite(), rounded, scale)
