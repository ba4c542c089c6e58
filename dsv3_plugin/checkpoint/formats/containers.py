"""The containers that `torch.save` writes: an uncompressed zip of a pickle and the storages' bytes.

Found here in a mapped file without torch, and without reading more than the directory and the
pickle. A container that torch would not have written (compressed, with a name twice, with two
pickles) is refused, so that nobody else can find another pickle in it than the one seen here.
"""

import io
import mmap
import struct
import zipfile
from collections.abc import Container as Collection
from dataclasses import dataclass
from typing import Any

from dsv3_plugin.checkpoint.formats.pickles import PickleError, Record, Symbol, parse
from dsv3_plugin.checkpoint.formats.symbols import EMPTY_BYTES, ENCODE

ZIP = b"PK\3\4"
"""How such a container begins."""
_LOCAL_HEADER = 30
_LONGEST_PICKLE = 1 << 28
"""Bytes of the pickle in a container; DeepSeek-V3's longest has some hundred thousand."""

Bytes = bytes | bytearray | mmap.mmap


@dataclass(frozen=True, slots=True)
class Saved:
    """What `torch.save` wrote, found in the bytes that hold it."""

    pickle: bytes
    storages: dict[str, tuple[int, int]]
    """Key of a storage → where its bytes begin, and how many there are."""

    def content(self, allowed: Collection[Symbol], where: object) -> Any:
        """What the pickle holds, as data; see `pickles.parse` for what it raises."""
        return parse(self.pickle, allowed, where)


def open_saved(data: Bytes, offset: int = 0, length: int | None = None) -> Saved:
    """The container at `data[offset:offset + length]`.

    Raises:
        PickleError: there is none, or not one that torch wrote.
    """
    length = len(data) - offset if length is None else length
    try:
        with zipfile.ZipFile(io.BufferedReader(_Slice(data, offset, length), 4096)) as container:
            return _find(container, data, offset, length)
    except (zipfile.BadZipFile, OSError, EOFError, struct.error) as error:
        raise PickleError(f"not what torch.save writes: {error}") from error
    except (NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, PickleError):
            raise
        raise PickleError("not what torch.save writes") from error


def _find(container: zipfile.ZipFile, data: Bytes, offset: int, length: int) -> Saved:
    records: dict[str, zipfile.ZipInfo] = {}
    for info in container.infolist():
        name = info.filename.partition("/")[2]
        if name in records or info.compress_type != zipfile.ZIP_STORED:
            raise PickleError(f"not what torch.save writes: {name!a} is compressed or there twice")
        records[name] = info
    described = records.get("data.pkl")
    if described is None or described.file_size > _LONGEST_PICKLE:
        raise PickleError("not what torch.save writes: there is no data.pkl of a sensible size")
    if "byteorder" in records and container.read(records["byteorder"]) != b"little":
        raise PickleError("its numbers are not in little-endian order")
    storages = {}
    for name, info in records.items():
        if name.startswith("data/"):
            header = offset + info.header_offset
            names, extra = struct.unpack_from("<2H", data, header + 26)
            begin = header + _LOCAL_HEADER + names + extra
            if not offset <= begin <= begin + info.file_size <= offset + length:
                raise PickleError("a storage is cut short")
            storages[name.removeprefix("data/")] = begin, info.file_size
    return Saved(container.read(described), storages)


def bytes_of(value: Any) -> bytes:
    """Bytes in a pickle of `torch.save`, whose protocol has them as text and a call.

    Raises:
        PickleError: it is something else.
    """
    if type(value) is Record and (value.symbol, value.args) == (EMPTY_BYTES, ()):
        return b""
    if type(value) is Record and value.symbol == ENCODE:
        text, encoding = value.args
        if type(text) is str and encoding in ("latin1", "latin-1"):
            value = text.encode("latin-1")
    if type(value) is not bytes:
        raise PickleError("there are no bytes where some belong")
    return value


class _Slice(io.RawIOBase):
    """A window of a mapped file, as the file object zipfile wants."""

    def __init__(self, data: Bytes, offset: int, length: int) -> None:
        self._data, self._offset, self._length, self._position = data, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        count = max(0, min(len(buffer), self._length - self._position))
        start = self._offset + self._position
        buffer[:count] = self._data[start : start + count]
        self._position += count
        return count
