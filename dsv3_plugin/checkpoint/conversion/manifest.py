"""`manifest.json` of a conversion's target: what was made of what, and a checksum of every tensor.

A checksum is of the whole tensor, its values in row-major order, however it is cut in files: the
manifests of a checkpoint and of the folder exported from it name the same bytes alike. It is a
CRC-32, which is what the bytes are summed with on their way in any case; it finds damage, it is no
signature (a cryptographic hash is two to ten times slower than the disk).
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from zlib_ng.zlib_ng import crc32

from dsv3_plugin.checkpoint import tracker
from dsv3_plugin.checkpoint.conversion import recode
from dsv3_plugin.checkpoint.conversion.journal import Checksums
from dsv3_plugin.checkpoint.conversion.manifest_file import MANIFEST, TRAINED_LENGTH, read
from dsv3_plugin.checkpoint.conversion.stream import Progress, as_bytes
from dsv3_plugin.checkpoint.conversion.verify import Comparison, Difference
from dsv3_plugin.checkpoint.conversion.weights import DistWeights, Weights, open_weights
from dsv3_plugin.checkpoint.conversion.workers import worker_threads
from dsv3_plugin.checkpoint.formats.target import Target
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.recipe.places import weights_at

ALGORITHM = "CRC-32 (zlib) of the tensor's bytes in row-major order"

_POLYNOMIAL = 0xEDB88320
"""CRC-32's, the highest power last, as zlib has it."""
_ONE = 1 << 31


def write(
    root: Path,
    header: dict[str, Any],
    source: Weights,
    targets: Iterable[Target],
    checksums: Checksums,
) -> None:
    """Names, shapes, types and checksums of everything that was written.

    Args:
        header: what the conversion is of; a repeated one has to be of the same.
        source: what was converted.
        checksums: of the pieces of every target.
    """
    tensors = [
        {
            "name": target.name,
            "shape": target.shape,
            "dtype": _name(target.dtype),
            "crc32": whole(target, checksums[target.name]),
        }
        for target in targets
    ]
    content = {**header, "model": source.model.name, "checksum": ALGORITHM, "tensors": tensors}
    if source.trained_length is not None:
        content[TRAINED_LENGTH] = source.trained_length
    replace_file(root / MANIFEST, json.dumps(content).encode())


def whole(target: Target, checksums: list[str]) -> str:
    """The checksum of a tensor, given those of its pieces."""
    crc = 0
    for piece, checksum in zip(target.pieces, checksums, strict=True):
        crc = joined(crc, int(checksum, 16), piece.nbytes)
    return f"{crc:08x}"


def joined(first: int, second: int, nbytes: int) -> int:
    """The CRC-32 of two runs of bytes one after the other, given each one's.

    Args:
        nbytes: length of the second run.
    """
    # Appending a byte multiplies by x⁸ in the field of the checksum (zlib's crc32_combine).
    power, square = _ONE, _ONE >> 8
    while nbytes:
        if nbytes & 1:
            power = _times(power, square)
        square, nbytes = _times(square, square), nbytes >> 1
    return _times(power, first) ^ second


def recorded(source: Weights) -> dict[str, str]:
    """Tensor → checksum by the manifest of an imported checkpoint; empty for any other weights."""
    found = _listed(source) if isinstance(source, DistWeights) else {}
    return {name: tensor["crc32"] for name, tensor in found.items()}


def check(
    path: str | Path,
    *,
    workers: int = 2,
    progress: Progress | None = None,
    announce: Callable[[int], None] | None = None,
) -> Comparison:
    """Compares a conversion's target with its own manifest.

    Args:
        path: a checkpoint that was imported or a Hugging Face folder that was exported; only read.
        workers: threads.
        progress: called with (bytes compared, bytes in all).
        announce: called before any tensor is read, with the bytes that will be.

    Raises UserError if it cannot be read, is not whole, or has no manifest.
    """
    weights = open_weights(weights_at(path))
    listed = _listed(weights)
    if not listed:
        raise UserError(
            f"{path} has no {MANIFEST} of its tensors, which a finished conversion leaves: give a "
            "second folder to compare it with."
        )
    # A checkpoint answers for the multi-token prediction layer's copies with the originals.
    copies = {entry.name for entry in weights.entries if entry.copy_of}
    differences = [Difference(name, f"not in {path}") for name in listed.keys() - weights.stored]
    differences += [
        Difference(name, f"not in {MANIFEST}") for name in weights.stored.keys() - listed - copies
    ]
    common = [name for name in weights.stored if name in listed]
    if announce:
        announce(sum(weights.stored[name].nbytes for name in common))
    total, done, equal = sum(weights.stored[name].nbytes for name in common), 0, 0
    if progress:
        progress(0, total)
    with worker_threads(workers) as pool:
        found = pool.map(lambda name: _differs(weights, name, listed[name]), common)
        for name, what in zip(common, found, strict=True):
            if what:
                differences.append(Difference(name, what))
            equal += not what
            done += weights.stored[name].nbytes
            if progress:
                progress(done, total)
    return Comparison(equal, differences, [])


def _listed(weights: Weights) -> dict[str, dict[str, Any]]:
    """Tensor → what the manifest says of it; empty if there is no manifest of these weights."""
    root = weights.path
    if isinstance(weights, DistWeights):
        # Iterations that a training saved beside an import are not what its manifest is about.
        if weights.checkpoint.path.name != tracker.RELEASE:
            return {}
        root = weights.root
    found = read(root)
    # Without a word on the algorithm it is of an earlier version, which summed pieces.
    if found.get("checksum") != ALGORITHM:
        return {}
    try:
        listed = {tensor["name"]: tensor for tensor in found["tensors"]}
        whole = all(t.keys() >= {"dtype", "shape", "crc32"} for t in listed.values())
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(
            f"{root / MANIFEST} is damaged: remove it, or the folder and convert again."
        )
    return listed


def _differs(weights: Weights, name: str, listed: dict[str, Any]) -> str:
    """What is not as the manifest lists it, or nothing."""
    stored, crc = weights.stored[name], 0
    for what, mine in (("dtype", _name(stored.dtype)), ("shape", list(stored.shape))):
        if listed[what] != mine:
            return f"{what} {mine} in {weights.file_of(name)}, {listed[what]} by {MANIFEST}"
    for start, stop in recode.steps(weights, name, stored.dtype):
        crc = crc32(as_bytes(weights.rows(name, start, stop)), crc)
    if f"{crc:08x}" != listed["crc32"]:
        return f"its bytes in {weights.file_of(name)} are not those of {MANIFEST}"
    return ""


def _times(a: int, b: int) -> int:
    """The product of two polynomials over GF(2), modulo the checksum's."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
