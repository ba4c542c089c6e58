"""Files opened as they are or expanded on the way, the compression told by their first bytes.

What a compressed file expands to is bounded by what it is: text shrinks to a tenth, and a file that
expands a hundredfold is no text.
"""

import gzip
import io
from pathlib import Path
from typing import BinaryIO

from dsv3_plugin.errors import UserError

SUFFIXES = (".gz", ".zst")

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"

_FREE = 4 * 2**20
_MOST = 100


def open_expanded(path: Path) -> BinaryIO:
    """Open a file for reading what is in it: of a gzip or zstd file, what was compressed.

    Raises:
        UserError: while it is read, when it expands like no text does.
        OSError, EOFError, zlib.error: it cannot be read, or is damaged.
    """
    file = path.open("rb")
    first = file.peek(len(_ZSTD))
    if first.startswith(_GZIP) or path.name.lower().endswith(".gz"):
        expanded = gzip.GzipFile(fileobj=file)
    elif first.startswith(_ZSTD) or path.name.lower().endswith(".zst"):
        import pyarrow

        expanded = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
    else:
        return file
    return io.BufferedReader(_Expanded(path, file, expanded), 2**16)


class _Expanded(io.RawIOBase):
    """The expanded bytes of a file, as long as they are in proportion to the compressed ones."""

    def __init__(self, path: Path, file: BinaryIO, expanded: BinaryIO) -> None:
        self._path, self._file, self._expanded = path, file, expanded
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = self._expanded.read1(len(buffer))  # what comes before a damage, too
        self._count += len(data)
        if self._count > _FREE + _MOST * self._file.tell():
            raise UserError(
                f"{self._path} expands to more than {_MOST} times its size, which text never "
                "does: leave it out of the corpus."
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._expanded.close()
            self._file.close()
        super().close()
