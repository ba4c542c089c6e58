"""How a tensor's values change on their way: not at all, by a cast, out of FP8 or into it.

Each function walks one stored tensor in blocks of rows and yields what goes to the target, so a
block is all the memory it takes. Every change is exact where it can be: FP8 values times their
scale are formed in FP32 and rounded once, and an FP8 weight is rebuilt from its kept scales to the
same bytes it came from.
"""

import math
from collections.abc import Callable, Iterator

import torch

from dsv3_plugin.checkpoint.conversion.stream import BLOCK_BYTES
from dsv3_plugin.checkpoint.conversion.weights import Weights
from dsv3_plugin.checkpoint.formats.mapped import same_bytes
from dsv3_plugin.checkpoint.names import BLOCK, SCALE, blocks_of
from dsv3_plugin.errors import UserError
from dsv3_plugin.fp8 import deepgemm
from dsv3_plugin.fp8.quantize import (
    REVERSIBLE,
    dequantize_blocks,
    quantize_blocks,
    requantize_blocks,
)

Blocks = Iterator[tuple[torch.Tensor, ...]]


def plain(source: Weights, name: str, dtype: torch.dtype) -> Blocks:
    """The values themselves, cast to `dtype` (views of the source if that is their type)."""
    for start, stop in steps(source, name, dtype):
        yield (source.rows(name, start, stop).to(dtype),)


def same_tensor(source: Weights, name: str, other: str) -> bool:
    """Whether two tensors of a folder are one, in the coarser of their types to the last bit."""
    first, second = source.stored[name], source.stored[other]
    if first.shape != second.shape:
        return False
    coarser = min(first.dtype, second.dtype, key=lambda dtype: dtype.itemsize)
    pairs = zip(plain(source, name, coarser), plain(source, other, coarser), strict=True)
    return all(same_bytes(a, b) for (a,), (b,) in pairs)


def finite(source: Weights, name: str, blocks: Callable[[], Blocks]) -> Blocks:
    """The blocks of a tensor as they are, each looked through.

    Raises UserError if a value is a NaN or an infinity: a model with such a weight computes nothing
    else.
    """
    for block in blocks():
        if not all(map(_all_finite, block)):
            raise UserError(
                f"{name} in {source.file_of(name)} holds a NaN or an infinity: "
                "the file is damaged, or the training that wrote it diverged; take a whole one, or "
                "an earlier one."
            )
        yield block


def _all_finite(values: torch.Tensor) -> bool:
    if not values.numel():
        return True
    if values.dtype == torch.float8_e4m3fn:
        # E4M3 has no infinity, and its NaNs are the codes 0x7f and 0xff.
        return int((values.view(torch.uint8) & 0x7F).max()) < 0x7F
    # Vectorised for BF16 too, which isfinite is not; both ends are NaN if any value is.
    return all(end.isfinite() for end in values.aminmax())


def dequantised(source: Weights, name: str, dtype: torch.dtype) -> Blocks:
    """An FP8 weight times its scales, in `dtype`."""
    for start, stop in steps(source, name, dtype):
        yield (dequantised_rows(source, name, start, stop, dtype),)


def released(source: Weights, name: str, dtype: torch.dtype) -> Blocks:
    """As `dequantised`, for good: `requantised` will give the same bytes back.

    Raises UserError where it would not: products that overflow, or get denormal, or are all 0
    under a scale of 0, no longer tell which codes they came from.
    """
    for start, stop in steps(source, name, dtype):
        weight = source.rows(name, start, stop)
        scale = kept_scale(source, name, start // BLOCK, blocks_of(stop))
        values = dequantize_blocks(weight, scale, out_dtype=dtype)
        size, (least, most) = scale.abs(), REVERSIBLE
        # Nearly always all scales are ordinary, and nothing has to be tried.
        ordinary = bool(((size >= least) & (size <= most)).all())
        if not (ordinary or same_bytes(requantize_blocks(values, scale), weight)):
            raise UserError(
                f"{name} in {source.file_of(name)} has FP8 scales so small or "
                "large that its values do not survive outside FP8: import it with "
                "--dtype keep-fp8, which is exact."
            )
        yield (values,)


def dequantised_rows(
    source: Weights, name: str, start: int, stop: int, dtype: torch.dtype
) -> torch.Tensor:
    """Rows `start:stop` of an FP8 weight (`start` a multiple of 128) times their scales."""
    scale = kept_scale(source, name, start // BLOCK, blocks_of(stop))
    return dequantize_blocks(source.rows(name, start, stop), scale, out_dtype=dtype)


def requantised(source: Weights, name: str) -> Blocks:
    """The FP8 bytes that `dequantised` with the kept scales made these values from.

    Raises UserError if the values are no such product: they have been changed since.
    """
    for start, stop in steps(source, name, torch.float32):
        weight = source.rows(name, start, stop)
        blocks = kept_scale(source, name, start // BLOCK, blocks_of(stop))
        values = requantize_blocks(weight, blocks)
        if not same_bytes(dequantize_blocks(values, blocks, out_dtype=weight.dtype), weight):
            raise UserError(
                f"{name} in {source.file_of(name)} does not fit the FP8 scales "
                "stored beside it: it was changed after it was imported."
            )
        yield (values,)


FP8_RULES = {"reversible": quantize_blocks, "deepgemm": deepgemm.quantize_blocks}
"""How weights that were never FP8 get their scales, by the names that users give."""


def quantised(source: Weights, name: str, *, rule: str, power_of_two: bool) -> Blocks:
    """The weight in FP8 and the scales it is given: a pair of tensors per block."""
    for start, stop in steps(source, name, torch.float32):
        weight = source.rows(name, start, stop)
        values, scale = FP8_RULES[rule](weight, power_of_two=power_of_two)
        if not bool(scale.isfinite().all()):
            raise UserError(
                f"{name} in {source.file_of(name)} holds a NaN or an infinity and has no FP8 form."
            )
        yield values, scale


def scales(source: Weights, name: str) -> Blocks:
    """The scales of a weight, checked."""
    yield (kept_scale(source, name),)


def kept_scale(source: Weights, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
    """The scales stored beside a weight, `[ceil(rows / 128), ceil(columns / 128)]` FP32.

    Args:
        start, stop: rows of blocks; all of them by default.

    Raises UserError if one is not a finite number.
    """
    stored = source.stored[name + SCALE]
    scale = source.rows(name + SCALE, start, stored.shape[0] if stop is None else stop)
    if not bool(scale.isfinite().all()):
        where = source.file_of(name + SCALE)
        raise UserError(
            f"{name + SCALE} in {where} holds a NaN or an infinity: the file is damaged, put "
            "a whole one in its place."
        )
    return scale


def steps(source: Weights, name: str, dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    """Row ranges that are a block each in the wider of the source's type and `dtype`.

    They begin at multiples of 128, so that FP8 scales divide with them.
    """
    stored = source.stored[name]
    row = max(stored.dtype.itemsize, dtype.itemsize) * math.prod(stored.shape[1:])
    step = max(1, BLOCK_BYTES // max(1, row * BLOCK)) * BLOCK
    for start in range(0, stored.shape[0], step):
        yield start, min(start + step, stored.shape[0])
