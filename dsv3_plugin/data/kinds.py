"""What a file of a corpus is, by its name and by its contents.

Only plain text becomes documents as it stands. Whatever is a record of something else (a table, an
archive, JSON that is no row with a text) has a name or a first few bytes that say so, and is not
read.
"""

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dsv3_plugin.data import expand
from dsv3_plugin.errors import UserError

Format = Literal["text", "jsonl", "json", "parquet"]
"""`text` is one document per file, `jsonl` one per line, `json` one per file or per element of its
array, `parquet` one per row."""

BOM = "\ufeff"

_JSON_LINES = (".jsonl", ".ndjson", ".jsonlines", ".jl")
_TABLES = {".csv": "a CSV table", ".tsv": "a TSV table"}
_COPIES = ("~", ".bak", ".orig", ".tmp", ".swp", ".part", ".crdownload")
"""Endings of what editors, merges and downloads leave beside a file."""
_CHECKSUMS = (".md5", ".sha1", ".sha256", ".sha512", ".crc")
_DATASET_RECORDS = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}

_HEAD = 2**16
_JSON_HEAD = 2**20

_CONVERT = "save its rows as JSON lines or parquet"
_UNPACK = "unpack it"

# First bytes, what they mean, the way out, and whether documents may be in there.
_SIGNATURES = (
    (b"PK\x03\x04", "a ZIP archive", _UNPACK, True),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK, True),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK, True),
    (b"\xfd7zXZ\x00", "compressed by xz", _UNPACK, True),
    (b"\x04\x22\x4d\x18", "compressed by lz4", _UNPACK, True),
    (b"ARROW1", "an Arrow file", _CONVERT, True),
    (b"\xff\xff\xff\xff", "an Arrow stream", _CONVERT, True),
    (b"Obj\x01", "an Avro file", _CONVERT, True),
    (b"SQLite format 3\x00", "an SQLite database", _CONVERT, True),
    (b"WARC/", "a WARC crawl", "extract its texts", True),
    (b"%PDF-", "a PDF", "extract its text", False),
    (b"{\\rtf", "an RTF document", "extract its text", False),
)
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_TAR = (257, b"ustar")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

_KEY = rb'"[^"\\]*(?:\\.[^"\\]*)*"\s*:'
_OBJECT = re.compile(rb"\{\s*" + _KEY)
_ARRAY_OF_OBJECTS = re.compile(rb"\[\s*\{\s*" + _KEY)


@dataclass(frozen=True)
class NotRead:
    """Why a file holds no documents that can be read.

    Attributes:
        why: what it is, and the way out.
        is_data: whether it holds data all the same, which text files beside it may be about.
    """

    why: str
    is_data: bool = False


def stem_of(path: Path) -> str:
    """The lower-case name of a file without what says how it is compressed."""
    name = path.name.lower()
    for suffix in expand.SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def kind_by_name(path: Path) -> Format:
    """The format of what has a name alone: a pipe, or a file that cannot be read."""
    suffix = Path(stem_of(path)).suffix
    if suffix in _JSON_LINES:
        return "jsonl"
    return "parquet" if suffix == ".parquet" else "text"


def kind_of(path: Path, keys: Sequence[str]) -> Format | NotRead:
    """The format of a file, or why it is not read.

    Args:
        keys: of JSON objects that are documents, one each; a file of others may be about data.

    Raises:
        UserError: the file stands for contents that are not here.
    """
    stem = stem_of(path)
    suffix = Path(stem).suffix
    try:
        head = _head(path, _HEAD)
    except (OSError, EOFError, zlib.error, UserError):
        return kind_by_name(path)  # reading it says what is wrong
    if head.startswith(_LFS_POINTER):
        raise UserError(
            f"{path} is a pointer of Git LFS, and its contents are not here: fetch them (git lfs "
            "pull), or leave it out of the corpus."
        )
    if path.name.lower().endswith(_COPIES):
        return NotRead("by its name a copy or unfinished, rename it to have it read")
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return "parquet"
    if (binary := _binary(head)) is not None:
        return binary
    if suffix in _TABLES:
        return NotRead(f"{_TABLES[suffix]}, {_CONVERT}", is_data=True)
    if stem in _DATASET_RECORDS or stem.endswith(_CHECKSUMS):
        return NotRead("about data, not of it")
    if suffix in _JSON_LINES:
        return "jsonl"
    if head.startswith(_UTF_16):
        return "text"  # reading it says what is wrong
    return _json_kind(path, head, keys, is_json=suffix == ".json")


def _binary(head: bytes) -> NotRead | None:
    for first, what, way_out, is_data in _SIGNATURES:
        if head.startswith(first):
            return NotRead(f"{what}, {way_out}", is_data)
    if _BZIP2.match(head):
        return NotRead(f"compressed by bzip2, {_UNPACK}", is_data=True)
    place, mark = _TAR
    if head[place:].startswith(mark):
        return NotRead(f"a tar archive, {_UNPACK}", is_data=True)
    if b"\x00" in head and not head.startswith(_UTF_16):
        return NotRead("not text but binary")
    return None


def _json_kind(path: Path, head: bytes, keys: Sequence[str], *, is_json: bool) -> Format | NotRead:
    """`jsonl`, `json` or `text`: text only where the file neither is nor is called JSON."""
    start = _without_bom(head)
    if not _OBJECT.match(start) and not _ARRAY_OF_OBJECTS.match(start):
        return NotRead("JSON, but no objects") if is_json and start else "text"
    head = _head(path, _JSON_HEAD)
    is_whole = len(head) < _JSON_HEAD
    first, newline, rest = _without_bom(head).partition(b"\n")
    if _OBJECT.match(first):
        if not newline and not is_whole:
            return "jsonl"  # one row, longer than what was looked at
        row = _parsed(first)
        if isinstance(row, dict) and (_has_one(keys, row) or _OBJECT.match(rest.lstrip())):
            return "jsonl"
    if _holds_documents(head, keys, is_whole):
        return "json"
    return NotRead(f"JSON without the key {' or '.join(json.dumps(key) for key in keys)}")


def _holds_documents(head: bytes, keys: Sequence[str], is_whole: bool) -> bool:
    value = _parsed(head) if is_whole else None
    if value is None:  # not all of it, or broken: reading it says so
        spelled = b"|".join(re.escape(json.dumps(key).encode()) for key in keys)
        return re.search(b"(?:" + spelled + rb")\s*:", head) is not None
    rows = value if isinstance(value, list) else [value]
    return any(isinstance(row, dict) and _has_one(keys, row) for row in rows)


def _has_one(keys: Sequence[str], row: Mapping[str, Any]) -> bool:
    return any(key in row for key in keys)


def _without_bom(head: bytes) -> bytes:
    return head.removeprefix(BOM.encode()).lstrip()


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _head(path: Path, size: int) -> bytes:
    with expand.open_expanded(path) as file:
        return file.read(size)
