"""Reads boxes of tensors from a `torch_dist` checkpoint, whatever parallel layout wrote it.

A box is a view of one mapped chunk when one chunk holds it, and is assembled from several
otherwise. No model is built, no process group is needed, and nothing but what is asked for is read.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dsv3_plugin.checkpoint.formats.dist_metadata import Place, StoredTensor, read_contents
from dsv3_plugin.checkpoint.formats.mapped import MappedFiles
from dsv3_plugin.checkpoint.formats.torch_zip import payload, view_of
from dsv3_plugin.errors import UserError

Slices = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor that is held in one piece."""

    offset: tuple[int, ...]
    sizes: tuple[int, ...]
    load: Callable[[Slices], torch.Tensor]
    """Gives a part of the box."""


class DistCheckpoint:
    """One iteration's (or the `release`) folder of a distributed checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.contents = read_contents(path)
        self._files = MappedFiles(path)
        self._chunks = {key: self._index(t) for key, t in self.contents.tensors.items()}

    def __contains__(self, key: str) -> bool:
        return key in self._chunks

    def shape(self, key: str) -> tuple[int, ...]:
        return self.contents.tensors[key].shape

    def dtype(self, key: str) -> torch.dtype:
        return getattr(torch, self.contents.tensors[key].dtype)

    def file(self, key: str, box: tuple[int, ...] | None = None) -> str:
        """Name of the file that holds the beginning of a tensor, or of its box at an offset."""
        chunks = self.contents.tensors[key].chunks
        holders = (
            place.file
            for offset, sizes, place in chunks
            if box and all(o <= b < o + n for o, b, n in zip(offset, box, sizes, strict=True))
        )
        return next(holders, chunks[0][2].file)

    def read(self, key: str, offset: tuple[int, ...], sizes: tuple[int, ...]) -> torch.Tensor:
        """The box of `sizes` at `offset` of the tensor `key`.

        Raises UserError if the checkpoint does not hold all of it, or its file is damaged.
        """
        groups = self._chunks[key]
        near = groups.get(offset[0]) if sizes[0] == 1 else None
        chunks = near or [chunk for group in groups.values() for chunk in group]
        try:
            return assemble(chunks, offset, sizes, self.dtype(key))
        except ValueError as error:
            raise UserError(f"{key} in {self.path / self.file(key)}: {error}.") from error

    def _index(self, tensor: StoredTensor) -> dict[int, list[Chunk]]:
        """Chunks by their first offset, if all are one thick there: experts are found at once."""
        groups: dict[int, list[Chunk]] = defaultdict(list)
        thin = all(sizes and sizes[0] == 1 for _, sizes, _ in tensor.chunks)
        for offset, sizes, place in tensor.chunks:
            chunk = Chunk(offset, sizes, partial(self._load, place, sizes, tensor.dtype))
            groups[offset[0] if thin else -1].append(chunk)
        return dict(groups)

    def _load(self, place: Place, sizes: tuple[int, ...], dtype: str, part: Slices) -> torch.Tensor:
        data = self._files.map(place.file)
        found = payload(data, place.position, place.length, self.path / place.file)
        if math.prod(found.sizes) != math.prod(sizes) or found.dtype != getattr(torch, dtype):
            raise ValueError("what is stored there is not what the metadata says")
        return view_of(found, data).reshape(sizes)[part]


def assemble(
    chunks: list[Chunk], offset: tuple[int, ...], sizes: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """The box of `sizes` at `offset`, cut from or put together of chunks.

    A view if one chunk holds the box. Raises ValueError if part of the box is in no chunk.
    """
    parts = []
    for chunk in chunks:
        ranges = [
            (max(a, b), min(a + m, b + n), a, b)
            for a, m, b, n in zip(offset, sizes, chunk.offset, chunk.sizes, strict=True)
        ]
        if any(low >= high for low, high, _, _ in ranges):
            continue
        box = tuple(slice(low - a, high - a) for low, high, a, _ in ranges)
        part = tuple(slice(low - b, high - b) for low, high, _, b in ranges)
        if all(s.stop - s.start == n for s, n in zip(part, sizes, strict=True)):
            return chunk.load(part)
        parts.append((box, part, chunk))
    # Before room is made for it: the sizes may come from a file that lies.
    stored = sum(math.prod(s.stop - s.start for s in box) for box, _, _ in parts)
    if stored != math.prod(sizes) or not parts:
        raise ValueError(f"part of the box of {list(sizes)} at {list(offset)} is not stored")
    result = torch.empty(sizes, dtype=dtype)
    for box, part, chunk in parts:
        result[box] = chunk.load(part)
    return result
