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
from zlib import crc32

from dsv3_plugin.checkpoint.formats.pickles import PickleError, Record, Symbol, parse
from dsv3_plugin.checkpoint.formats.symbols import EMPTY_BYTES, ENCODE

ZIP = b"PK\3\4"
"""How such a container begins."""
_END_MARK, _ENTRY_MARK = b"PK\5\6", b"PK\1\2"
_LOCAL = struct.Struct("<4s22x2H")
"""Before each record: its mark, and the lengths of its name and of what else follows."""
_ENTRY = struct.Struct("<4s6xH4xLLL3H8xL")
_END = struct.Struct("<4s4H2LH")
_LONG_END = struct.Struct("<4s20x4Q4s4xQ4x")
"""What torch writes besides: of numbers of eight bytes, and where it is."""
_LONG_END_MARK, _LONG_PLACE_MARK = b"PK\6\6", b"PK\6\7"
_UTF_8 = 0x800
"""Flag of a record whose name is in UTF-8."""
_MANY = 0xFFFFFFFF
"""Stands where a number is too large for its four bytes."""
_LONGEST_PICKLE = 1 << 25
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
        return _find(_records(data, offset, length), data, offset, length)
    except (zipfile.BadZipFile, OSError, EOFError, struct.error) as error:
        raise PickleError(f"not what torch.save writes: {error}") from error
    except (NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, PickleError):
            raise
        raise PickleError("not what torch.save writes") from error


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a zip's directory says of a record."""

    name: bytes
    header: int
    """Offset of its own header in the container."""
    size: int
    crc: int
    is_stored: bool
    """Whether its bytes are in it as they are."""


def _records(data: Bytes, offset: int, length: int) -> list[_Entry]:
    """The directory of a container.

    A checkpoint has one container for each chunk of a tensor, and zipfile takes longer over a
    directory than all else takes: what `torch.save` writes for less than 4 GB is read here.
    """
    end = offset + length - _END.size
    if length < _END.size:
        raise PickleError("not what torch.save writes: it is cut short")
    mark, _, _, _, count, size, begin, comment = _END.unpack_from(data, end)
    if mark != _END_MARK or comment or _MANY in (size, begin) or count == 0xFFFF:
        window = io.BufferedReader(_Slice(data, offset, length), 4096)
        with zipfile.ZipFile(window) as container:
            return [_entry(info) for info in container.infolist()]
    between = bytes(data[offset + begin + size : end])  # the same once more, in longer numbers
    if between and (
        len(between) != _LONG_END.size
        or _LONG_END.unpack(between)
        != (_LONG_END_MARK, count, count, size, begin, _LONG_PLACE_MARK, begin + size)
    ):
        raise PickleError("not what torch.save writes: its directory is not at its end")
    entries = []
    directory, at = data[offset + begin : end], 0
    for _ in range(count):
        mark, how, crc, packed, nbytes, names, extra, remark, header = _ENTRY.unpack_from(
            directory, at
        )
        at += _ENTRY.size
        if mark != _ENTRY_MARK or _MANY in (packed, nbytes, header):
            raise PickleError("not what torch.save writes: its directory is damaged")
        entries.append(_Entry(directory[at : at + names], header, nbytes, crc, how == 0))
        at += names + extra + remark
    if at != size:
        raise PickleError("not what torch.save writes: its directory is damaged")
    return entries


def _entry(info: zipfile.ZipInfo) -> _Entry:
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF_8 else "cp437")
    is_stored = info.compress_type == zipfile.ZIP_STORED
    return _Entry(name, info.header_offset, info.file_size, info.CRC, is_stored)


def _find(entries: list[_Entry], data: Bytes, offset: int, length: int) -> Saved:
    records: dict[str, _Entry] = {}
    for entry in entries:
        name = entry.name.partition(b"/")[2].decode()
        if name in records or not entry.is_stored:
            raise PickleError(f"not what torch.save writes: {name!a} is compressed or there twice")
        records[name] = entry
    described = records.get("data.pkl")
    if described is None or described.size > _LONGEST_PICKLE:
        raise PickleError("not what torch.save writes: there is no data.pkl of a sensible size")

    def place(entry: _Entry) -> int:
        header = offset + entry.header
        mark, names, extra = _LOCAL.unpack_from(data, header)
        begin = header + _LOCAL.size + names + extra
        there = data[header + _LOCAL.size : header + _LOCAL.size + names] == entry.name
        if not (mark == ZIP and there and begin + entry.size <= offset + length):
            raise PickleError("not what torch.save writes: a record is not where it belongs")
        return begin

    def read(entry: _Entry) -> bytes:
        begin = place(entry)
        found = bytes(data[begin : begin + entry.size])
        if crc32(found) != entry.crc:
            raise PickleError("not what torch.save writes: its checksum is another one")
        return found

    if "byteorder" in records and read(records["byteorder"]) != b"little":
        raise PickleError("its numbers are not in little-endian order")
    storages = {
        name.removeprefix("data/"): (place(entry), entry.size)
        for name, entry in records.items()
        if name.startswith("data/")
    }
    return Saved(read(described), storages)


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
