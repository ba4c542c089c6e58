"""Are two sets of weights the same? Streamed, tensor by tensor, whatever each is stored as.

Two FP8 forms are compared as they are, bytes and scales. An FP8 weight and any other are compared
as values in the other's type, which is what a conversion between the two promises; the rest is
compared as FP32.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from dsv3_plugin.checkpoint import recode
from dsv3_plugin.checkpoint.mapped import same_bytes
from dsv3_plugin.checkpoint.names import SCALE, Entry
from dsv3_plugin.checkpoint.stream import Progress
from dsv3_plugin.checkpoint.weights import E4M3, Weights, open_weights


@dataclass(frozen=True)
class Difference:
    """One tensor that is not the same on both sides."""

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


def verify(
    a: str | Path,
    b: str | Path,
    *,
    tolerance: float = 0.0,
    workers: int = 2,
    progress: Progress | None = None,
) -> Comparison:
    """Compares any two of {Hugging Face folder, Megatron checkpoint}.

    Args:
        a, b: the folders; only read.
        tolerance: absolute difference of values that counts as none; 0 means bit for bit.
        workers: threads.
        progress: called with (bytes of `a` compared, bytes in all).

    Raises UserError if one of them cannot be read or is not whole.
    """
    left, right = open_weights(Path(a)), open_weights(Path(b))
    differences, absent = [], []
    theirs = {entry.name: entry for entry in right.entries}
    common = []
    for entry in left.entries:
        other = theirs.pop(entry.name, None)
        if other is None:
            differences.append(Difference(entry.name, f"only in {a}"))
        elif other.shape != entry.shape:
            shapes = f"shape {list(entry.shape)} in {a}, {list(other.shape)} in {b}"
            differences.append(Difference(entry.name, shapes))
        elif entry.name not in left.stored or entry.name not in right.stored:
            absent.append(entry.name)
        else:
            common.append(entry)
    differences += [Difference(name, f"only in {b}") for name in theirs]
    equal, done = 0, 0
    total = sum(left.stored[entry.name].nbytes for entry in common)
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda entry: compare(left, right, entry, tolerance), common)
        for entry, difference in zip(common, found, strict=True):
            if difference is None:
                equal += 1
            else:
                differences.append(difference)
            done += left.stored[entry.name].nbytes
            if progress:
                progress(done, total)
    return Comparison(equal, differences, absent)


def compare(left: Weights, right: Weights, entry: Entry, tolerance: float) -> Difference | None:
    """The difference of one tensor, None if there is none."""
    scale = entry.name + SCALE
    largest, same = 0.0, True
    names = [entry.name]
    if scale in left.stored and scale in right.stored:
        names.append(scale)
    for name in names:
        for mine, other in _blocks(left, right, name):
            if _identical(mine, other):
                continue
            same = False
            gap = (mine.float() - other.float()).abs()
            # Two NaNs are no difference, one is the largest there is.
            gap = torch.where(mine.isnan() & other.isnan(), 0.0, gap).max().item()
            largest = gap if gap > largest or gap != gap else largest
    if same or largest <= tolerance > 0:
        return None
    return Difference(entry.name, "values differ" if largest else "signs of zero differ", largest)


def _blocks(
    left: Weights, right: Weights, name: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Both sides' values of a tensor, block by block, in types that can be compared."""
    mine, other = left.stored[name].dtype, right.stored[name].dtype
    both_fp8 = mine == other == E4M3
    steps = recode.steps(left, name, torch.float32)
    for start, stop in steps:
        yield (
            left.rows(name, start, stop)
            if mine != E4M3 or both_fp8
            else recode.dequantised_rows(left, name, start, stop, other),
            right.rows(name, start, stop)
            if other != E4M3 or both_fp8
            else recode.dequantised_rows(right, name, start, stop, mine),
        )


def _identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    return same_bytes(a, b) if a.dtype == b.dtype else torch.equal(a.float(), b.float())
