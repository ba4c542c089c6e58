"""The bytes in which `torch.save` keeps one tensor, written and read without holding the tensor.

A `.distcp` file of a distributed checkpoint is a row of such containers, one per chunk: an
uncompressed zip with a small pickle that describes the tensor and one record that is its bytes.
`Container` says where those bytes lie before they exist, so that they can be streamed into place;
`payload` finds them in a file that torch wrote, so that they can be mapped instead of loaded.
What the pickle asks for is not executed (`pickles`).
"""

import io
import math
import pickle
import struct
from collections import OrderedDict
from dataclasses import dataclass

import torch
from zlib_ng.zlib_ng import crc32

from dsv3_plugin.checkpoint.formats.containers import Bytes, open_saved
from dsv3_plugin.checkpoint.formats.mapped import tensor_at
from dsv3_plugin.checkpoint.formats.stored_tensors import StoredView, stored_tensor
from dsv3_plugin.checkpoint.formats.symbols import STORAGES, TENSORS

_ALIGN = 64
"""torch aligns a storage's first byte to this within the container."""

# Records torch writes besides the tensor, with the values torch writes.
_BEFORE = ((".format_version", b"1"), (".storage_alignment", b"64"), ("byteorder", b"little"))
_AFTER = (("version", b"3\n"),)

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")


class Container:
    """Layout of the container of one contiguous CPU tensor of `dtype` and `sizes`.

    It is `head(crc)`, the tensor's `nbytes` bytes from `start` on, and `tail(crc)`, `length` bytes
    in all. Both ends carry the CRC-32 of the tensor's bytes and have lengths that do not depend on
    it, so the bytes can be in place before their checksum is known.
    """

    def __init__(self, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
        self.nbytes = math.prod(sizes) * dtype.itemsize
        if self.nbytes >= 1 << 32:
            raise ValueError(f"a chunk of {self.nbytes} bytes needs zip64; split it")
        self._records = [("data.pkl", _describe(dtype, sizes)), *_BEFORE]
        position = sum(_LOCAL.size + len(_name(n)) + len(data) for n, data in self._records)
        position += _LOCAL.size + len(_name("data/0"))
        self._padding = -position % _ALIGN
        self.start = position + self._padding
        self.length = self.start + self.nbytes + len(self.tail(0))

    def head(self, crc: int) -> bytes:
        """The bytes before the tensor's, given the CRC-32 of the tensor's bytes."""
        parts = [_local(name, crc32(data), len(data)) + data for name, data in self._records]
        return b"".join(parts) + _local("data/0", crc, self.nbytes, self._padding)

    def tail(self, crc: int) -> bytes:
        """The bytes after the tensor's, given the CRC-32 of the tensor's bytes."""
        after = b"".join(_local(name, crc32(data), len(data)) + data for name, data in _AFTER)
        directory, position = b"", 0
        for name, data in self._records:
            directory += _central(name, crc32(data), len(data), position)
            position += _LOCAL.size + len(_name(name)) + len(data)
        directory += _central("data/0", crc, self.nbytes, position)
        position = self.start + self.nbytes
        for name, data in _AFTER:
            directory += _central(name, crc32(data), len(data), position)
            position += _LOCAL.size + len(_name(name)) + len(data)
        count = len(self._records) + 1 + len(_AFTER)
        return after + directory + _END.pack(
            b"PK\5\6", 0, 0, count, count, len(directory), position, 0
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Payload:
    """Where a stored tensor's values are, and how they are strided."""

    position: int
    """Offset in the file of the storage's first byte."""
    dtype: torch.dtype
    sizes: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int
    storage_numel: int


def payload(data: Bytes, offset: int, length: int, where: object = "it") -> Payload:
    """Finds the tensor in the container at `data[offset:offset + length]`.

    Args:
        where: how a person knows the container.

    Raises:
        ForeignSymbolError: it names what could run code.
        ValueError: it is not a container of one plain tensor.
    """
    saved = open_saved(data, offset, length)
    return payload_of(stored_tensor(saved.content(TENSORS, where), saved))


def payload_of(stored: StoredView) -> Payload:
    """The same, with torch's type."""
    return Payload(
        stored.position, getattr(torch, stored.dtype), stored.sizes, stored.stride, stored.first,
        stored.held,
    )  # fmt: skip


def view_of(found: Payload, data: Bytes) -> torch.Tensor:
    """The tensor whose values are at a place of `data`, as a view of it."""
    storage = tensor_at(data, found.position, found.dtype, (found.storage_numel,))
    return storage.as_strided(found.sizes, found.stride, found.storage_offset)


# --- the pickle that describes a tensor


class _Storage:
    """Stands for the storage in the pickle: torch finds the bytes by its persistent id."""

    def __init__(self, dtype: torch.dtype, key: str, numel: int) -> None:
        self.dtype, self.key, self.numel = dtype, key, numel


_LEGACY = {
    getattr(torch, dtype): name for name, dtype in STORAGES.items() if name != "UntypedStorage"
}
"""Types with a storage class of their own; newer ones are stored as bytes, and name the type."""


class _Tensor:
    """Pickles as torch pickles a contiguous tensor with its own storage."""

    def __init__(self, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
        self.dtype, self.sizes = dtype, sizes

    def __reduce__(self) -> tuple:
        numel = math.prod(self.sizes)
        stride = tuple(math.prod(self.sizes[axis + 1 :]) for axis in range(len(self.sizes)))
        if self.dtype in _LEGACY:
            storage = _Storage(self.dtype, "0", numel)
            return torch._utils._rebuild_tensor_v2, (
                storage, 0, self.sizes, stride, False, OrderedDict(),
            )  # fmt: skip
        storage = _Storage(torch.uint8, "0", numel * self.dtype.itemsize)
        return torch._utils._rebuild_tensor_v3, (
            storage, 0, self.sizes, stride, False, OrderedDict(), self.dtype, None,
        )  # fmt: skip


class _Writer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, untyped: bool) -> None:
        super().__init__(file, protocol=2)
        self._untyped = untyped

    def persistent_id(self, obj: object) -> tuple | None:
        if not isinstance(obj, _Storage):
            return None
        kind = torch.UntypedStorage if self._untyped else getattr(torch, _LEGACY[obj.dtype])
        return "storage", kind, obj.key, "cpu", obj.numel


def _describe(dtype: torch.dtype, sizes: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    _Writer(file, untyped=dtype not in _LEGACY).dump(_Tensor(dtype, tuple(sizes)))
    return file.getvalue()


# --- the zip around it


def _name(record: str) -> bytes:
    return f"archive/{record}".encode()


def _local(record: str, crc: int, size: int, padding: int = 0) -> bytes:
    # The padding rides in the extra field, as a record of torch's own kind ("FB") when it is long
    # enough to be one; it is 0 to 63 bytes that no reader looks at.
    extra = b"FB" + struct.pack("<H", padding - 4) if padding >= 4 else b""
    name = _name(record)
    header = _LOCAL.pack(b"PK\3\4", 0, 0, 0, 0, 0, crc, size, size, len(name), padding)
    return header + name + extra.ljust(padding, b"Z")


def _central(record: str, crc: int, size: int, position: int) -> bytes:
    name = _name(record)
    return _CENTRAL.pack(
        b"PK\1\2", 0, 0, 0, 0, 0, 0, crc, size, size, len(name), 0, 0, 0, 0, 0, position
    ) + name  # fmt: skip
