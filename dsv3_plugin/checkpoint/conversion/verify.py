"""Are two sets of weights the same? Streamed, tensor by tensor, whatever each is stored as.

Two FP8 forms are the same if their bytes and scales are; if not, their values tell by how much they
differ. An FP8 weight and any other are compared as values in the other's type, which is what a
conversion between the two promises; other types that differ are compared as FP32. Two NaNs are no
distance apart, nor are two equal infinities.

The models are compared too: the same tensors under another rope_theta are another model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dsv3_plugin.checkpoint.conversion import recode
from dsv3_plugin.checkpoint.conversion.notes import notes_on_comparison
from dsv3_plugin.checkpoint.conversion.stream import Progress
from dsv3_plugin.checkpoint.conversion.weights import E4M3, Weights, open_weights
from dsv3_plugin.checkpoint.conversion.workers import worker_threads
from dsv3_plugin.checkpoint.formats.mapped import same_bytes
from dsv3_plugin.checkpoint.names import SCALE, Entry
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.places import weights_at

_TRAINED_WITH = frozenset(
    {"name", "init_method_std", "moe_aux_loss_coeff", "moe_router_load_balancing_type"}
)
"""Fields of a model that say nothing of what its weights compute."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Difference:
    """One tensor, or field of the model's configuration, that is not the same on both sides."""

    name: str
    what: str
    largest: float | None = None
    """Largest absolute difference of two values; NaN if only one of them is NaN."""


@dataclass(frozen=True)
class Comparison:
    """What `verify` found."""

    equal: int
    """Tensors that are the same (within the tolerance)."""
    differences: list[Difference]
    absent_copies: list[str]
    """The MTP layer's copies that one side leaves out; no difference, as they say nothing new."""
    scales: int = 0
    """Scales of FP8 weights in either, which are not counted: each belongs to its weight."""
    equal_by_value: int = 0
    """Of the `equal`, those that are stored in unlike types: their values are the same in one of
    the two, or in FP32, and not their bits."""
    notes: tuple[str, ...] = ()
    """What the user should know: a sentence each."""


def verify(
    a: str | Path,
    b: str | Path,
    *,
    tolerance: float = 0.0,
    workers: int = 2,
    allow_pickle: bool = False,
    without_mtp: bool = False,
    progress: Progress | None = None,
    announce: Callable[[int], None] | None = None,
) -> Comparison:
    """Compares any two of {Hugging Face folder, Megatron checkpoint, run's folder}.

    Args:
        a, b: the folders; only read.
        tolerance: absolute difference of values that counts as none; 0 means bit for bit.
        workers: threads.
        allow_pickle: read `*.bin` or `*.pt` weights, as tensors only.
        without_mtp: as for `import_hf`, of a Hugging Face folder.
        progress: called with (bytes of `a` compared, bytes in all).
        announce: called before any tensor is read, with the bytes of both that will be.

    Raises UserError if one of them cannot be read or is not whole.
    """
    left, right = (
        open_weights(weights_at(path), allow_pickle=allow_pickle, without_mtp=without_mtp)
        for path in (a, b)
    )
    if announce:
        announce(_bytes_in_both(left, right))
    differences, absent = _configuration(left.model, right.model, a, b), []
    mine, theirs = ({entry.name: entry for entry in side.entries} for side in (left, right))
    common = []
    for name in {**mine, **theirs}:
        entry, other = mine.get(name), theirs.get(name)
        holders = [side for side in (left, right) if name in side.stored]
        if len(holders) == 1 and (original := (entry or other).copy_of):
            (holder,) = holders
            if recode.same_tensor(holder, name, original):
                absent.append(name)
            else:
                what = f"in {holder.path} it is no copy of {original}"
                differences.append(Difference(name, what))
        elif entry is None or other is None:
            differences.append(Difference(name, f"only in {b if entry is None else a}"))
        elif other.shape != entry.shape:
            shapes = f"shape {list(entry.shape)} in {a}, {list(other.shape)} in {b}"
            differences.append(Difference(name, shapes))
        elif holders:
            common.append(entry)
    equal, by_value, done = 0, 0, 0
    total = sum(left.stored[entry.name].nbytes for entry in common)
    if progress:
        progress(0, total)
    with worker_threads(workers) as pool:
        found = pool.map(lambda entry: compare(left, right, entry, tolerance), common)
        for entry, difference in zip(common, found, strict=True):
            if difference is None:
                equal += 1
                stored = (side.stored[entry.name].dtype for side in (left, right))
                by_value += len({*stored}) > 1
            else:
                differences.append(difference)
            done += left.stored[entry.name].nbytes
            if progress:
                progress(done, total)
    scales = {name for side in (left, right) for name in side.stored if name.endswith(SCALE)}
    notes = notes_on_comparison(left, right, without_mtp=without_mtp)
    return Comparison(equal, differences, absent, len(scales), by_value, notes)


def compare(left: Weights, right: Weights, entry: Entry, tolerance: float) -> Difference | None:
    """The difference of one tensor, None if there is none."""
    name, scale = entry.name, entry.name + SCALE
    scaled = scale in left.stored and scale in right.stored
    both_fp8 = left.stored[name].dtype == right.stored[name].dtype == E4M3
    same_scales = not scaled or _same_rows(left, right, scale)
    if both_fp8 and same_scales and _same_rows(left, right, name):
        return None
    largest, what = 0.0, set()
    for mine, other in _blocks(left, right, name):
        if mine.dtype == other.dtype and same_bytes(mine, other):
            continue
        gap, kinds = _gap(mine, other)
        largest = gap if gap > largest or gap != gap else largest
        what |= kinds
    if largest <= tolerance > 0:
        return None
    if largest:
        return Difference(name, "values differ", largest)
    if both_fp8:
        return Difference(name, "FP8 bytes or scales differ, their products do not", 0.0)
    if not same_scales:
        return Difference(name, "the FP8 scales beside it differ")
    return Difference(name, f"{' and '.join(sorted(what))} differ", 0.0) if what else None


def _gap(mine: torch.Tensor, other: torch.Tensor) -> tuple[float, set[str]]:
    """The largest distance of two values, and what differs that is no distance.

    The latter (signs of zero, bits of NaNs) is asked of values of one type only: a cast may change
    it.
    """
    a, b = mine.float(), other.float()
    nan = a.isnan() & b.isnan()
    gap = torch.where((a == b) | nan, 0.0, (a - b).abs()).max().item()
    what = set()
    if mine.dtype == other.dtype:
        bits = _BITS[mine.itemsize]
        changed = mine.contiguous().view(bits) != other.contiguous().view(bits)
        what |= {"bits of NaNs"} if bool((changed & nan).any()) else set()
        what |= {"signs of zero"} if bool((changed & (a == b)).any()) else set()
    return gap, what


def _configuration(
    mine: ModelConfig, other: ModelConfig, a: str | Path, b: str | Path
) -> list[Difference]:
    """The fields in which two models differ, those apart that only training asks for."""
    left, right = mine.to_mapping(), other.to_mapping()
    return [
        Difference(f"model configuration: {field}", f"{left[field]} in {a}, {right[field]} in {b}")
        for field in left
        if field not in _TRAINED_WITH and left[field] != right[field]
    ]


def _bytes_in_both(left: Weights, right: Weights) -> int:
    """Bytes of the tensors that two folders have in common, scales included, in either."""
    common = left.stored.keys() & right.stored.keys()
    return sum(side.stored[name].nbytes for side in (left, right) for name in common)


def _same_rows(left: Weights, right: Weights, name: str) -> bool:
    """Whether a tensor has the same bytes on both sides, where it has one type."""
    return all(
        same_bytes(left.rows(name, start, stop), right.rows(name, start, stop))
        for start, stop in recode.steps(left, name, torch.float32)
    )


def _blocks(
    left: Weights, right: Weights, name: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Both sides' values of a tensor, block by block, FP8 taken out into the other's type."""
    mine, other = left.stored[name].dtype, right.stored[name].dtype
    wide = torch.float32 if mine == other == E4M3 else None
    for start, stop in recode.steps(left, name, torch.float32):
        yield (
            recode.dequantised_rows(left, name, start, stop, wide or other)
            if mine == E4M3
            else left.rows(name, start, stop),
            recode.dequantised_rows(right, name, start, stop, wide or mine)
            if other == E4M3
            else right.rows(name, start, stop),
        )
