"""The layout of a Hugging Face folder: which shard a tensor goes to, and where in it.

safetensors puts a header with every tensor's place before the first byte of data, so the whole
folder is laid out before anything is written. Shards are named and indexed as transformers does.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch

from dsv3_plugin.checkpoint.formats.hf_headers import DTYPES, INDEX
from dsv3_plugin.checkpoint.formats.sharding import Sharding
from dsv3_plugin.checkpoint.formats.target import Piece, Target
from dsv3_plugin.files.atomic import replace_file, sync_folder

Described = tuple[str, torch.dtype, tuple[int, ...]]
"""A tensor to be placed: name, type and shape."""

_NAMES = {getattr(torch, dtype): name for name, dtype in DTYPES.items()}
_ALIGNMENT = 64
"""Bytes of a cache line: the kernel copies what begins with one twice as fast into a file."""

_ALONE = "model.safetensors"
"""The file that readers find without an index."""

_PART = ".part"
"""Ending of a shard's name until all shards are whole."""


class HFLayout:
    """Places tensors in shards."""

    def __init__(
        self,
        tensors: Iterable[Described],
        shard_size: int,
        like: Sharding | None = None,
    ) -> None:
        """Args:
        tensors: in their order.
        shard_size: bytes of a shard at most, more if one tensor is larger.
        like: a folder whose files the tensors are divided into instead. A file that has the same
            tensors there, of the same types and shapes, has the same header, and so the same bytes.

        Raises UserError if that folder lacks one of the tensors.
        """
        self.targets: dict[str, Target] = {}
        self.headers: dict[str, bytes] = {}
        self.files: dict[str, int] = {}
        self._index: dict[str, str] = {}
        self._index_file: bytes | None = None
        self.total_size = 0
        if like is None:
            self._divide(tensors, shard_size)
        else:
            self._divide_like(tensors, like)

    def _divide(self, tensors: Iterable[Described], shard_size: int) -> None:
        shards: list[list[Described]] = [[]]
        room = shard_size
        for entry in tensors:
            size = _nbytes(entry)
            if size > room and shards[-1]:
                shards.append([])
                room = shard_size
            shards[-1].append(entry)
            room -= size
        for number, shard in enumerate(shards, start=1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._place(shard, file if len(shards) > 1 else _ALONE)

    def _divide_like(self, tensors: Iterable[Described], like: Sharding) -> None:
        shards: dict[str, list[Described]] = {}
        for entry in tensors:
            shards.setdefault(like.file_of(entry[0]), []).append(entry)
        there: dict[str, dict[str, Described]] = {file: {} for file in shards}
        for name, d in like.tensors.items():
            if d.file in there:
                there[d.file][name] = (name, getattr(torch, d.dtype), d.shape)
        same = {file for file, shard in shards.items() if {e[0]: e for e in shard} == there[file]}
        for file in sorted(shards):
            if file in same:
                self._place_as_there(shards[file], file, like)
            else:
                self._place(shards[file], file)
        if same == {d.file for d in like.tensors.values()}:
            self._index_file = like.index

    def _place_as_there(self, shard: list[Described], file: str, like: Sharding) -> None:
        part, header = file + _PART, like.header_of(file)
        end = len(header)
        for name, dtype, shape in shard:
            piece = Piece(part, like.tensors[name].position, _nbytes((name, dtype, shape)))
            self.targets[name] = Target(name, dtype, shape, (piece,))
            self._index[name] = file
            end = max(end, piece.position + piece.nbytes)
        self.headers[part], self.files[part] = header, end
        self.total_size += end - len(header)

    def _place(self, shard: list[Described], file: str) -> None:
        described: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end, begins = 0, {}
        for entry in sorted(shard, key=_alignment_first):
            name, dtype, shape = entry
            begins[name], end = end, end + _nbytes(entry)
            described[name] = {
                "dtype": _NAMES[dtype], "shape": shape, "data_offsets": [begins[name], end],
            }  # fmt: skip
        header = json.dumps(described, separators=(",", ":")).encode()
        header += b" " * (-(len(header) + 8) % _ALIGNMENT)
        header = len(header).to_bytes(8, "little") + header
        part = file + _PART
        for entry in shard:
            name, dtype, shape = entry
            piece = Piece(part, len(header) + begins[name], _nbytes(entry))
            self.targets[name] = Target(name, dtype, shape, (piece,))
            self._index[name] = file
        self.headers[part] = header
        self.files[part] = len(header) + end
        self.total_size += end

    def recall(self, folder: Path) -> None:
        """Takes the shards' names away again, for a run that was killed while publishing."""
        for part in self.files:
            if (folder / part.removesuffix(_PART)).exists():
                (folder / part.removesuffix(_PART)).rename(folder / part)

    def publish(self, folder: Path) -> None:
        """Gives whole shards their names, then writes the index: the step that makes it a model."""
        for part in self.files:
            (folder / part).rename(folder / part.removesuffix(_PART))
        sync_folder(folder)
        if self._index_file is not None:
            replace_file(folder / INDEX, self._index_file)
        elif [*self.files] != [_ALONE + _PART]:
            index = {"metadata": {"total_size": self.total_size}, "weight_map": self._index}
            replace_file(folder / INDEX, json.dumps(index, indent=2).encode())


def _alignment_first(entry: Described) -> tuple[bool, int]:
    """Sorts last what would put its successors out of step, and of that the smallest types."""
    _, dtype, _ = entry
    return _nbytes(entry) % _ALIGNMENT > 0, -dtype.itemsize


def _nbytes(entry: Described) -> int:
    _, dtype, shape = entry
    return math.prod(shape) * dtype.itemsize
