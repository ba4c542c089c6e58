"""An index in upstream's format, checked before anything follows it.

`PREFIX.idx` says where the sequences of `PREFIX.bin` are (`indexed_dataset._IndexWriter`): 34 bytes
of header; of each sequence an int32 length in tokens, then an int64 offset in bytes; where each
document ends, in sequences, int64 each; where data are of several modes, an int8 per sequence.
Upstream believes all of it, and its compiled helper reads wherever it points.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy

from dsv3_plugin.errors import UserError

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
# megatron.core.datasets.indexed_dataset.DType, of whole numbers
_DTYPES = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 8: "u2"}
_TOKEN_BYTES = {code: numpy.dtype(name).itemsize for code, name in _DTYPES.items()}
_AT_ONCE = 2**20


@dataclass(frozen=True)
class Sequences:
    """Where the sequences of an index are: lengths in tokens, offsets in bytes.

    Attributes:
        lengths: int32 `[sequences]`.
        offsets: int64 `[sequences]`.
        dtype: of a token.
        code: upstream's, of that type.
    """

    lengths: numpy.ndarray
    offsets: numpy.ndarray
    dtype: numpy.dtype
    code: int


@dataclass(frozen=True)
class Index:
    """What an index says, and its data bear out. `token_bytes` is the size of one token."""

    sequences: int
    documents: int
    tokens: int
    token_bytes: int


def read_index(prefix: Path, *, of_all: bool = False) -> Index:
    """Read all of an index, in little memory.

    Args:
        prefix: of its two files.
        of_all: it is no index of a part, so that tokens of another size are told by what it covers.

    Raises:
        UserError: it cannot be read, or does not describe the data beside it.
    """
    path, data = (prefix.with_name(f"{prefix.name}.{suffix}") for suffix in ("idx", "bin"))
    try:
        with path.open("rb") as file:
            return _read(file, path.stat().st_size, data.stat().st_size, of_all)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}.") from error
    except _Lies as error:
        raise UserError(
            f"{path} does not describe {data.name} ({error}): build the dataset again."
        ) from None


def map_sequences(prefix: Path) -> Sequences:
    """The sequences of an index, mapped from its file; `read_index` has to have found it true."""
    path = prefix.with_name(f"{prefix.name}.idx")
    with path.open("rb") as file:
        _, _, code, sequences, _ = _HEADER.unpack(file.read(_HEADER.size))
    lengths = numpy.memmap(path, numpy.int32, "r", _HEADER.size, (sequences,))
    offsets = numpy.memmap(path, numpy.int64, "r", _HEADER.size + 4 * sequences, (sequences,))
    return Sequences(lengths, offsets, numpy.dtype(_DTYPES[code]), code)


def write_index(path: Path, lengths: numpy.ndarray, offsets: numpy.ndarray, code: int) -> None:
    """Write an index in which each sequence is a document.

    Unlike upstream's writer it takes offsets as they are, so that it may leave out what lies
    between.
    """
    count = len(lengths)
    with path.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, _VERSION, code, count, count + 1))
        for array in (
            lengths.astype(numpy.int32),
            offsets.astype(numpy.int64),
            numpy.arange(count + 1, dtype=numpy.int64),
        ):
            array.tofile(file)


class _Lies(Exception):
    """What is wrong with an index."""


def _read(file: BinaryIO, size: int, data_bytes: int, of_all: bool) -> Index:
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise _Lies("it is cut short")
    magic, version, code, sequences, boundaries = _HEADER.unpack(header)
    if (magic, version) != (_MAGIC, _VERSION) or code not in _TOKEN_BYTES:
        raise _Lies("its header is another one")
    expected = _HEADER.size + (4 + 8) * sequences + 8 * boundaries
    if size not in (expected, expected + sequences):
        raise _Lies(f"it has {size} bytes instead of {expected}")
    token_bytes = _TOKEN_BYTES[code]

    tokens = 0
    longest = data_bytes // token_bytes
    for lengths in _arrays(file, numpy.int32, sequences):
        if lengths.min() < 0 or lengths.max() > longest:
            raise _Lies("a sequence is longer than the data")
        tokens += int(lengths.sum(dtype=numpy.int64))
    with open(file.name, "rb") as again:
        again.seek(_HEADER.size)
        for lengths, offsets in zip(
            _arrays(again, numpy.int32, sequences),
            _arrays(file, numpy.int64, sequences),
            strict=True,
        ):
            ends = offsets + lengths.astype(numpy.int64) * token_bytes
            if offsets.min() < 0 or offsets.max() > data_bytes or ends.max() > data_bytes:
                raise _Lies("a sequence lies outside the data")
    last = 0
    for place, ends in enumerate(_arrays(file, numpy.int64, boundaries)):
        if ends.min() < 0 or ends.max() > sequences or (place == 0 and ends[0] != 0):
            raise _Lies("a document lies outside the sequences")
        if (numpy.diff(ends, prepend=last) < 0).any():
            raise _Lies("its documents are out of order")
        last = int(ends[-1])
    if not boundaries or last != sequences:
        raise _Lies("its documents are not its sequences")
    fitting = {size for size in _TOKEN_BYTES.values() if tokens * size == data_bytes}
    if of_all and fitting and token_bytes not in fitting:
        raise _Lies(f"tokens of {token_bytes} bytes, where the data have {fitting.pop()} for each")
    return Index(sequences, boundaries - 1, tokens, token_bytes)


def _arrays(file: BinaryIO, dtype: type, count: int) -> Iterator[numpy.ndarray]:
    while count:
        array = numpy.fromfile(file, dtype, min(count, _AT_ONCE))
        if not array.size:
            raise _Lies("it is cut short")
        count -= array.size
        yield array
