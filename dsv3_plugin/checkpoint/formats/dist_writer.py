"""The layout of a `torch_dist` checkpoint: which file a region of a tensor goes to, and where.

Written without a model and without a process group: chunks are laid out here, their bytes streamed
into place, and torch's own `FileSystemWriter` writes the `.metadata` that finds them. One chunk per
Hugging Face tensor (upstream also cuts a gated `linear_fc1` into gate and up, and experts apart),
cut further where it is large, because a reader loads whole chunks.

A tensor's second name (see names.Row.alias) and the empty `_extra_state` objects cost no space:
their metadata points at bytes that are there already.
"""

import functools
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from dsv3_plugin.checkpoint.formats.target import Piece, Target
from dsv3_plugin.checkpoint.formats.torch_zip import Container
from dsv3_plugin.checkpoint.names import Entry
from dsv3_plugin.files.atomic import replace_file

_CHUNK_BYTES = 256 << 20
"""A chunk is cut into row blocks of at most this size."""
_FILE_BYTES = 5 << 30
"""A file is closed when it has reached this size."""
_ALIGN = 64
"""Containers start at multiples of this, so that tensors are aligned in a mapped file."""


class DistLayout:
    """Places regions of distributed tensors in `.distcp` files."""

    def __init__(self, regions: Iterable[tuple[Entry, torch.dtype]]) -> None:
        self.targets: dict[str, Target] = {}
        self.files: dict[str, int] = {}
        self._chunks: list[tuple[Entry, torch.dtype, tuple[int, ...], tuple[int, ...], Piece]] = []
        self._file, self._end = self._new_file(), 0
        for entry, dtype in regions:
            self._place(entry, dtype)
        self.files[self._file] = self._end

    def finish(self, folder: Path, common: Mapping[str, Any], extra_states: Iterable[str]) -> None:
        """Writes what makes the chunks a checkpoint: objects, metadata, the format's mark.

        Args:
            common: upstream's common state (version, content metadata).
            extra_states: unique keys of the empty `_extra_state` objects.
        """
        objects_file = f"__0_{len(self.files)}.distcp"
        empty, state = _saved([None]), _saved([dict(common)])
        replace_file(folder / objects_file, empty + state)
        described: dict[str, Any] = {}
        results: list[WriteResult] = []

        def locate(index: MetadataIndex, file: str, position: int, length: int) -> None:
            info = _StorageInfo(file, position, length)
            results.append(WriteResult(index=index, size_in_bytes=length, storage_data=info))

        for entry, dtype, offset, sizes, piece in self._chunks:
            for key in filter(None, (entry.key, entry.alias)):
                stored = described.setdefault(
                    key,
                    TensorStorageMetadata(
                        TensorProperties(dtype), torch.Size(entry.global_shape), []
                    ),
                )
                stored.chunks.append(ChunkStorageMetadata(torch.Size(offset), torch.Size(sizes)))
                locate(
                    MetadataIndex(key, offset), piece.file, piece.position, piece.container.length
                )
        for key in extra_states:
            described[key] = BytesStorageMetadata()
            locate(MetadataIndex(key), objects_file, 0, len(empty))
        described["common_state/shard_0_1"] = BytesStorageMetadata()
        locate(MetadataIndex("common_state/shard_0_1"), objects_file, len(empty), len(state))
        FileSystemWriter(folder).finish(Metadata(described), [results])
        replace_file(
            folder / "metadata.json",
            json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}).encode(),
        )

    def _place(self, entry: Entry, dtype: torch.dtype) -> None:
        pieces = []
        row_bytes = math.prod(entry.shape[1:]) * dtype.itemsize
        step = max(1, _CHUNK_BYTES // row_bytes)
        axis = len(entry.offset) - len(entry.shape)
        for start in range(0, entry.shape[0], step):
            rows = min(step, entry.shape[0] - start)
            sizes = (1,) * axis + (rows, *entry.shape[1:])
            offset = list(entry.offset)
            offset[axis] += start
            container = _container(dtype, sizes)
            if self._end >= _FILE_BYTES:
                self.files[self._file] = self._end
                self._file, self._end = self._new_file(), 0
            position = -(-self._end // _ALIGN) * _ALIGN
            piece = Piece(self._file, position, container.nbytes, container)
            self._end = position + container.length
            self._chunks.append((entry, dtype, tuple(offset), sizes, piece))
            pieces.append(piece)
        self.targets[entry.name] = Target(entry.name, dtype, entry.shape, tuple(pieces))

    def _new_file(self) -> str:
        file = f"__0_{len(self.files)}.distcp"
        self.files[file] = 0
        return file


# Experts are many and alike.
_container = functools.lru_cache(maxsize=256)(Container)


def _saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()
