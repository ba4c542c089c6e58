"""Rows of JSON, one a line, read with bounds: memory holds one, and one is no larger than anybody
means."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dsv3_plugin.data.expand import open_expanded
from dsv3_plugin.data.kinds import BOM
from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import bytes_text

# Of a line of JSON lines, of a JSON file, of what a compressed file expands to. A string of Python
# takes up to four times as much, and several of them exist while a document is read.
MOST_BYTES = 32 * 2**20

_MOST_VALUES = 1_000_000
_FEW_BYTES = 4 * 2**20  # in which more values than that fit, but no more memory than they may take
_STRING_OR_VALUE = re.compile(rb'"(?>[^"\\]+|\\.)*+"|[,:\[{]', re.DOTALL)


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file, compressed or not, each with its line's number from 1.

    In place of a row that cannot be read stands the UserError that says why, with file and line.
    Empty lines are none.

    Raises:
        UserError, OSError, EOFError, zlib.error: the file cannot be read any further.
    """
    with open_expanded(path) as file:
        number = 0
        while raw := file.readline(MOST_BYTES + 1):
            number += 1
            if len(raw) <= MOST_BYTES and raw.isspace():
                continue
            where = f"{path} line {number}"
            if len(raw) > MOST_BYTES:
                most = in_one_document(MOST_BYTES)
                yield number, UserError(f"{where} has more than {most}: split its document.")
                _finish_line(file, raw)
                continue
            try:
                row = parse_row(raw, where)
            except UserError as error:
                row = error
            yield number, row


def parse_row(raw: bytes, where: str) -> Any:
    """The value that a text in JSON stands for, if it is not one of a million values.

    Raises:
        UserError: it is one, or the text is not JSON.
    """
    if len(raw) > _FEW_BYTES:
        # A value takes up to forty times the memory of its text, a string about as much.
        found = _STRING_OR_VALUE.finditer(raw)
        if sum(1 for _ in itertools.islice(found, _MOST_VALUES + 1)) > _MOST_VALUES:
            raise UserError(
                f"{where} holds more than {_MOST_VALUES:,} strings and values of JSON: keep its "
                "text alone, one row per line."
            )
    try:
        return json.loads(decode(raw, where).removeprefix(BOM))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}.") from error


def decode(raw: bytes, where: str) -> str:
    """A text.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 text (byte 0x{raw[error.start]:02x} at offset {error.start}): "
            "convert it, or leave it out of the corpus."
        ) from error


def in_one_document(most: int) -> str:
    """So many bytes, in words."""
    return f"{bytes_text(most)} in one document"


def _finish_line(file: BinaryIO, raw: bytes) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(_FEW_BYTES)
