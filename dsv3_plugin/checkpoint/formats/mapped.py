"""Files mapped into memory and read as tensors without a copy.

One mapping per file, shared by all threads; pages come and go with the kernel's cache and are no
memory of this process.
"""

import math
import mmap
import threading
import warnings
from pathlib import Path

import torch

from dsv3_plugin.errors import UserError

# The maps are read-only, and torch warns, once in a process, that writing to such a tensor would
# crash. Nobody writes.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.frombuffer(b" ", dtype=torch.uint8)


class MappedFiles:
    """The files of one checkpoint, mapped on first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: dict[str, mmap.mmap] = {}
        self._lock = threading.Lock()

    def map(self, file: str) -> mmap.mmap:
        """The whole of `folder/file`; a `UserError` names a file that is not there."""
        with self._lock:
            if file not in self._maps:
                self._maps[file] = map_file(self._folder / file)
            return self._maps[file]


def map_file(path: Path) -> mmap.mmap:
    """The whole of a file, read-only."""
    try:
        with path.open("rb") as handle:
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def tensor_at(
    data: bytes | bytearray | mmap.mmap, position: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> torch.Tensor:
    """The contiguous tensor whose bytes start at `position`, a view of the map.

    Files do not promise alignment; a tensor that is not aligned to its element is copied.
    """
    numel = math.prod(shape)
    if numel == 0:
        return torch.empty(shape, dtype=dtype)
    if position % dtype.itemsize:
        raw = bytearray(data[position : position + numel * dtype.itemsize])
        return torch.frombuffer(raw, dtype=dtype).view(shape)
    return torch.frombuffer(data, dtype=dtype, count=numel, offset=position).view(shape)


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one type and shape have the same bytes, NaNs and zeros' signs too."""
    a, b = a.contiguous().view(-1), b.contiguous().view(-1)
    # Compared as the widest integers that fit: seven times faster than bytes.
    wide = a.nbytes // 8 * 8 // a.itemsize
    if a.itemsize < 8 and wide and wide * a.itemsize % 8 == 0:
        if not torch.equal(a[:wide].view(torch.int64), b[:wide].view(torch.int64)):
            return False
        a, b = a[wide:], b[wide:]
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))
