"""The one FP8 quantiser: 1×128 tiles and 128×128 blocks of E4M3, both directions.

Dispatch (activations and gradients on the wire), checkpoint conversion (`weight_scale_inv`) and the
FP8 matrix products all call these functions, so that a number is rounded by one rule only.
DeepSeek's convention (arXiv 2412.19437, §3.3.2): every block keeps its own FP32 factor and

    value = quantised × scale_inv,        scale_inv = max|block| / 448.

Two refinements make quantise → dequantise → quantise return the same bytes and scales, where the
values between are FP32 (BF16 rounds the largest value, and with it may move an FP32 scale; the
products of power-of-two scales it holds exactly):

* FP32 scales: `max/448` is rounded once through 448 (`fl(fl(448·s)/448)`), the fixed point of that
  map; it differs from the plain quotient by one unit in the last place, and seldom.
* power-of-two scales: the smallest power of two for which the largest value still *rounds* to at
  most 448, which is up to 464. With `ceil(log2(max/448))` a maximum in (448, 464] would round down
  to half the range and change its scale the second time.

DeepSeek's kernels and DeepGEMM choose otherwise in three places, so bytes may differ from theirs:

* they take no block for smaller than 1e-4 (`amax.clamp(1e-4)`), so that values below 3.5e-9 get
  coarse and those below 2.2e-10 vanish; here a block is as small as it is;
* of a block that is all zero (up to 2^-127) the scale is 1 here, and 1e-4 / 448 there;
* power-of-two scales are `2^ceil(log2(max/448))` there: a maximum in (448, 464], times any power of
  two, gets twice the scale that it gets here.

DeepGEMM multiplies by the rounded reciprocal of the scale, too, where this divides. `fp8.deepgemm`
gives its bytes; `dsv3 export --fp8 --fp8-rule deepgemm` writes them.

A block that holds a NaN or an infinity comes back as NaN; nothing is silently clipped: even at the
end of FP32's range a value is off by no more than E4M3 rounds. Edge blocks are ragged: they use
the values that exist. Work is done in slices that stay in a core's cache.
"""

from collections.abc import Iterator

import torch

from dsv3_plugin.errors import UserError

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
"""Largest finite E4M3 value."""
E4M3_ROUNDS_TO_MAX = 464.0
"""Halfway from 448 to the absent 480; ties go to even, so up to here a value rounds to 448."""
TILE = 128
"""Values that share a scale along the inner axis; also the side of a weight block."""

# The smallest scale: 2^-9, the smallest E4M3 value, times this is still a normal FP32 number, so
# nothing here depends on how the processor treats denormals.
_MIN_SCALE = 2.0**-117
# The largest: 448 times this is finite.
_MAX_SCALE = 2.0**119 * (1 + 1 / 7 - 2.0**-23)
# The largest power of two. Its code 256 would be infinite, so values end at its code 240; they lose
# at most 2^-4 by it, which is what E4M3 rounds.
_MAX_POWER = 2.0**120
_MAX_UNDER_POWER = 240 * _MAX_POWER
# Half the smallest code times the smallest scale: up to here everything rounds to 0.
_ROUNDS_TO_ZERO = 2.0**-10 * _MIN_SCALE

REVERSIBLE = 2.0**-117, 2.0**119
"""Scales between these two: every product with a code, in BF16 or FP32, is a normal number."""

# Values per slice on the CPU: the FP32 copy of a slice is 1 MiB, the size of a core's L2 cache.
_SLICE = 256 * 1024


def quantize_tiles(
    x: torch.Tensor, *, power_of_two: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises activations or gradients in 1×128 tiles along the last axis.

    Args:
        x: `[..., k]`, any floating dtype.
        power_of_two: scales are powers of two (exact products; DeepSeek-V3's choice on the wire).

    Returns:
        E4M3 values `[..., k]` and FP32 scales `[..., ceil(k / 128)]`.
    """
    flat = x.detach().reshape(-1, x.shape[-1])
    values, scale_inv = _quantize(flat, (1, TILE), power_of_two)
    return values.view(x.shape), scale_inv.view(*x.shape[:-1], scale_inv.shape[-1])


def dequantize_tiles(
    values: torch.Tensor, scale_inv: torch.Tensor, out_dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """Inverse of `quantize_tiles`: `[..., k]` E4M3 and `[..., ceil(k / 128)]` → `[..., k]`."""
    k = values.shape[-1]
    flat = _dequantize(
        values.reshape(-1, k), scale_inv.reshape(-1, scale_inv.shape[-1]), (1, TILE), out_dtype
    )
    return flat.view(values.shape)


def quantize_blocks(
    weight: torch.Tensor, block: int = TILE, *, power_of_two: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises a weight in `block`×`block` squares, as DeepSeek's checkpoints are.

    Args:
        weight: `[n, k]`, any floating dtype.

    Returns:
        E4M3 values `[n, k]` and FP32 `weight_scale_inv` `[ceil(n / block), ceil(k / block)]`.
    """
    return _quantize(weight.detach(), (block, block), power_of_two)


def requantize_blocks(
    weight: torch.Tensor, scale_inv: torch.Tensor, block: int = TILE
) -> torch.Tensor:
    """The E4M3 values `[n, k]` of a weight under scales that it has already.

    Undoes `dequantize_blocks` to the byte: rounding to BF16 or FP32 moves a value by far less than
    the distance of two E4M3 values, so each one finds its way back. That holds while products
    neither overflow nor get denormal (see `REVERSIBLE`), and for zeros and signed NaNs always.
    """
    return _quantize(weight.detach(), (block, block), scale_inv=scale_inv)[0]


def dequantize_blocks(
    weight: torch.Tensor,
    scale_inv: torch.Tensor,
    block: int = TILE,
    out_dtype: torch.dtype = torch.bfloat16,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`weight × scale_inv`, block by block: reads a DeepSeek FP8 weight.

    The product is formed in FP32 and rounded once to `out_dtype`. Besides the result it allocates a
    few MiB, whatever the size of the weight, and reads `weight` once from start to end, so a
    memory-mapped weight and a memory-mapped `out` stream.

    Args:
        weight: `[n, k]` E4M3.
        scale_inv: `[ceil(n / block), ceil(k / block)]` FP32.
        out: where to write, `[n, k]` of `out_dtype`; made when absent.

    Raises:
        UserError: the scales do not fit the weight.
    """
    return _dequantize(weight, scale_inv, (block, block), out_dtype, out)


def _quantize(
    x: torch.Tensor,
    block: tuple[int, int],
    power_of_two: bool = False,
    scale_inv: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[n, k]` → E4M3 `[n, k]` and FP32 scales `[ceil(n / block[0]), ceil(k / block[1])]`.

    Scales that are given are taken, else they are chosen.
    """
    n, k = x.shape
    values = torch.empty(n, k, dtype=E4M3, device=x.device)
    choose = scale_inv is None
    if choose:
        scale_inv = torch.empty(block_grid(x.shape, block), dtype=torch.float32, device=x.device)
    for rows, block_rows, scratch in slices(x, block, torch.float32):
        height = rows.stop - rows.start
        scratch[:height, :k] = x[rows]
        blocks = as_blocks(scratch, block)
        if choose:
            # The innermost axis first: contiguous, and what is left is 128 times smaller.
            scale_inv[block_rows] = _scale_of_max(blocks.abs().amax(-1).amax(1), power_of_two)
        scale = scale_inv[block_rows]
        if not choose:
            # What a scale of 0 has made is ±0, and 0/0 would make it NaN.
            scale = torch.where(scale == 0, 1.0, scale)
        elif power_of_two and (x.device.type != "cpu" or bool((scale == _MAX_POWER).any())):
            # On the CPU looking costs nothing; elsewhere it would make the host wait.
            blocks.clamp_(-_MAX_UNDER_POWER, _MAX_UNDER_POWER)
        values[rows] = blocks.div_(scale[:, None, :, None]).view(scratch.shape)[:height, :k]
    return values, scale_inv


def _dequantize(
    values: torch.Tensor,
    scale_inv: torch.Tensor,
    block: tuple[int, int],
    out_dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`[n, k]` E4M3 and its scales → `[n, k]` of `out_dtype`."""
    n, k = values.shape
    if values.dtype != E4M3:
        raise UserError(f"expected float8_e4m3fn values to dequantise, got {values.dtype}")
    if tuple(scale_inv.shape) != block_grid(values.shape, block):
        raise UserError(
            f"values [{n}, {k}] in {block[0]}×{block[1]} blocks need scales "
            f"{list(block_grid(values.shape, block))}, got {list(scale_inv.shape)}"
        )
    if out is None:
        out = torch.empty(n, k, dtype=out_dtype, device=values.device)
    elif out.shape != values.shape or out.dtype != out_dtype:
        raise UserError(
            f"out must be {out_dtype} of shape [{n}, {k}], got {out.dtype} {list(out.shape)}"
        )
    scale_inv = scale_inv.float()
    bits = torch.empty(0, dtype=torch.int16, device=values.device)
    for rows, block_rows, scratch in slices(values, block, torch.float32):
        height = rows.stop - rows.start
        if bits.numel() != height * k:
            bits = torch.empty(height, k, dtype=torch.int16, device=values.device)
        has_nan = _e4m3_to_float32(values[rows], bits, scratch[:height, :k])
        scale = scale_inv[block_rows][:, None, :, None]
        as_blocks(scratch, block).mul_(scale)
        out[rows] = scratch[:height, :k]
        if has_nan and out_dtype in _NAN_BITS:
            _write_nans(values[rows], out[rows])
    return out


def _e4m3_to_float32(values: torch.Tensor, bits: torch.Tensor, out: torch.Tensor) -> bool:
    """Writes E4M3 `values` to the FP32 `out` through the FP16 bit pattern, in `bits`.

    E4M3 and FP16 order their bits alike, so sign, exponent and mantissa shifted into place read as
    value / 2^8 (the difference of the exponent biases), denormals included. On the CPU this runs
    ten times as fast as torch's own conversion. Only NaN (all ones) needs its own step; returns
    whether there is one, as far as that was looked at (on the CPU).
    """
    if values.device.type != "cpu":
        out.copy_(values)
        return False
    signed = values.view(torch.int8)
    bits.copy_(signed).mul_(128)  # sign-extended, then shifted left by 7: bit 14 repeats the sign
    bits.bitwise_and_(~0x4000)
    out.copy_(bits.view(torch.float16)).mul_(256.0)
    has_nan = signed.numel() > 0 and int(signed.bitwise_or(-128).amax()) == -1
    if has_nan:
        out.masked_fill_(signed.bitwise_or(-128) == -1, float("nan"))
    return has_nan


_NAN_BITS = {torch.bfloat16: (torch.int16, 0x7FC0), torch.float32: (torch.int32, 0x7FC00000)}
"""Type → integers of its size and the bits of its positive quiet NaN."""


def _write_nans(values: torch.Tensor, out: torch.Tensor) -> None:
    """Gives every NaN among E4M3 `values` the same bits in `out`, but for its sign.

    torch's casts choose a NaN's sign and bits by how a loop was vectorised; E4M3 has two NaNs, and
    quantising again must know which it was.
    """
    bits, positive = _NAN_BITS[out.dtype]
    signed, out = values.view(torch.int8), out.view(bits)
    out.masked_fill_(signed == 127, positive)
    out.masked_fill_(signed == -1, torch.iinfo(bits).min + positive)


def _scale_of_max(amax: torch.Tensor, power_of_two: bool) -> torch.Tensor:
    """Scale of blocks whose largest magnitude is `amax`; NaN where that is not finite."""
    if power_of_two:
        mantissa, exponent = torch.frexp(amax)  # amax = mantissa × 2^exponent, mantissa in [½, 1)
        exponent = exponent - 9 + (mantissa > E4M3_ROUNDS_TO_MAX / 512.0)
        # Assemble 2^exponent from its bits: exact on every device, unlike a power function.
        scale = (exponent.clamp(-117, 127) + 127).to(torch.int32).bitwise_left_shift(23)
        scale = scale.view(torch.float32)
    else:
        # A tensor: by a plain number a GPU divides with its reciprocal, off by a bit now and then.
        largest = torch.full((), E4M3_MAX, device=amax.device)
        scale = (amax / largest).clamp(_MIN_SCALE, _MAX_SCALE)
        scale = ((scale * largest) / largest).clamp(_MIN_SCALE, _MAX_SCALE)
    # Codes that are all 0 do not tell their scale: the second time it has to be the same.
    scale = torch.where(amax <= _ROUNDS_TO_ZERO, 1.0, scale)
    return torch.where(amax.isfinite(), scale, float("nan"))


def block_grid(shape: torch.Size, block: tuple[int, int]) -> tuple[int, int]:
    """Number of blocks along each axis, the ragged one at the edge counted."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def as_blocks(padded: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """View of `[R·br, C·bc]` as `[R, br, C, bc]`."""
    return padded.view(padded.shape[0] // block[0], block[0], -1, block[1])


def slices(
    x: torch.Tensor, block: tuple[int, int], dtype: torch.dtype
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Walks `[n, k]` in whole block rows.

    Yields the rows, the block rows they make, and a scratch tensor whose two sides are multiples
    of the block. What lies beyond the ragged edges is zero when a slice begins, so it never raises
    a maximum. Off the CPU the whole tensor is one slice: few large kernels.
    """
    n, k = x.shape
    rows, columns = block_grid(x.shape, block)
    width = columns * block[1]
    per_slice = rows
    if x.device.type == "cpu" and width:
        per_slice = max(1, _SLICE // (width * block[0]))
    scratch = torch.zeros(0, dtype=dtype, device=x.device)
    for first in range(0, rows if width else 0, per_slice):
        last = min(first + per_slice, rows)
        height = (last - first) * block[0]
        if scratch.shape[0] != height or last * block[0] > n:
            scratch = torch.zeros(height, width, dtype=dtype, device=x.device)
        scratch[:, k:] = 0.0
        yield slice(first * block[0], min(last * block[0], n)), slice(first, last), scratch
