"""A corpus is a stream of documents, read one at a time from text, JSONL or parquet files.

`find_sources` turns what a user names (the Python standard library, files, folders) into an
ordered list of files; `read_documents` streams them. Memory holds one document (of a parquet
file: one small batch of rows), however large the corpus. The order is that of the names, so the
same files give the same stream on every machine.
"""

import gzip
import hashlib
import json
import os
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal

from dsv3_plugin.errors import UserError

STDLIB = "stdlib"

# Outside of these, the standard library is ordinary source text that every installation has.
# Tests are left out because distributions package them apart, and because some of them are
# deliberately broken or not UTF-8.
_NOT_STDLIB = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__",
}  # fmt: skip
_GENERATED = ("_sysconfigdata", "config-")  # differ from machine to machine

_PARQUET_ROWS = 64

Format = Literal["text", "jsonl", "parquet"]


@dataclass(frozen=True)
class Source:
    """One file of a corpus.

    Attributes:
        path: where it is.
        name: what errors and fingerprints call it: its path below what the user named.
        format: `text` is one document per file, `jsonl` one per line, `parquet` one per row.
    """

    path: Path
    name: str
    format: Format


@dataclass(frozen=True)
class Document:
    """One document and where it came from (`file`, `file:line`, `file:row`)."""

    name: str
    text: str

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that depend on the text alone: equal documents are told by equal digests."""
        return hashlib.blake2b(self.text.encode(), digest_size=16).digest()


def find_sources(corpus: str | Path | Sequence[str | Path]) -> list[Source]:
    """The files of a corpus, in reading order.

    Args:
        corpus: `"stdlib"` (the source of the running interpreter's standard library), a file, a
            folder (every file below it that is not hidden), or a sequence of these.

    Raises:
        UserError: a path that does not exist or cannot be listed, or no file at all.
    """
    named = [corpus] if isinstance(corpus, str | Path) else list(corpus)
    sources = [source for item in named for source in _expand(item)]
    if not sources:
        what = ", ".join(str(item) for item in named) or "the corpus"
        raise UserError(f"{what} holds no files: name files or folders with documents in them.")
    return sources


def _expand(item: str | Path) -> Iterator[Source]:
    if item == STDLIB:
        yield from _standard_library()
        return
    path = Path(item).expanduser()
    if path.is_dir():
        for below in _files_below(path):
            yield _source(below, f"{path.name}/{below.relative_to(path).as_posix()}")
    elif path.exists():
        yield _source(path, path.name)
    else:
        raise UserError(
            f'corpus {path} does not exist: name a file, a folder, or "{STDLIB}" for the source '
            "of the Python standard library."
        )


def _standard_library() -> Iterator[Source]:
    root = Path(sysconfig.get_path("stdlib"))
    found = False
    for path in _files_below(root):
        parts = path.relative_to(root).parts
        if path.suffix == ".py" and not any(
            part in _NOT_STDLIB or part.startswith(_GENERATED) for part in parts
        ):
            found = True
            yield Source(path, "/".join(parts), "text")
    if not found:
        raise UserError(
            f"this Python keeps no source of its standard library in {root}: name text files as "
            "the corpus instead."
        )


def _files_below(root: Path) -> Iterator[Path]:
    """Files below `root`, sorted by their parts; hidden ones and links to folders are left out."""

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot list {error.filename}: {error.strerror}.") from error

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name)


def _source(path: Path, name: str) -> Source:
    stem = path.name.removesuffix(".gz")
    if stem.endswith((".jsonl", ".ndjson")):
        return Source(path, name, "jsonl")
    return Source(path, name, "parquet" if stem.endswith(".parquet") else "text")


def file_signature(sources: Iterable[Source]) -> str:
    """A fingerprint that changes when a file is added, removed or written; reads no contents."""
    hasher = hashlib.blake2b(digest_size=16)
    for source in sources:
        try:
            status = source.path.stat()
        except OSError as error:
            raise UserError(f"cannot read {source.path}: {error.strerror}.") from error
        hasher.update(repr((source.name, status.st_size, status.st_mtime_ns)).encode())
    return hasher.hexdigest()


def read_documents(sources: Iterable[Source], text_key: str = "text") -> Iterator[Document]:
    """The documents of a corpus, in order; empty ones are left out.

    Args:
        text_key: the key of a JSONL object, or the column of a parquet file, that holds the text.

    Raises:
        UserError: naming the file (and line or row) that cannot be read as documents.
    """
    readers = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}
    for source in sources:
        try:
            for document in readers[source.format](source, text_key):
                if document.text:
                    yield document
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot read {source.path}: {reason}.") from error


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 text (byte 0x{raw[error.start]:02x} at offset {error.start}): "
            "convert it, or leave it out of the corpus."
        ) from error


def _read_text(source: Source, text_key: str) -> Iterator[Document]:
    with _open(source.path) as file:
        yield Document(source.name, _decode(file.read(), str(source.path)))


def _read_jsonl(source: Source, text_key: str) -> Iterator[Document]:
    with _open(source.path) as file:
        for number, raw in enumerate(file, start=1):
            where = f"{source.path} line {number}"
            line = _decode(raw, where)
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON: {error}.") from error
            if not isinstance(value, dict):
                raise UserError(f'{where} is not a JSON object with a "{text_key}" key.')
            if text_key not in value:
                keys = ", ".join(sorted(value)) or "none"
                raise UserError(
                    f'{where} has no key "{text_key}" (its keys: {keys}): set the text key.'
                )
            yield Document(f"{source.name}:{number}", _as_text(value[text_key], where, text_key))


def _read_parquet(source: Source, text_key: str) -> Iterator[Document]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(source.path) as file:
            if text_key not in file.schema_arrow.names:
                columns = ", ".join(file.schema_arrow.names)
                raise UserError(
                    f'{source.path} has no column "{text_key}" (its columns: {columns}): set the '
                    "text key."
                )
            row = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_key]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    where = f"{source.path} row {row}"
                    yield Document(f"{source.name}:{row}", _as_text(value, where, text_key))
    except pyarrow.ArrowException as error:
        raise UserError(f"{source.path} is not a readable parquet file: {error}.") from error


def _as_text(value: object, where: str, text_key: str) -> str:
    if not isinstance(value, str):
        raise UserError(f'{where}: "{text_key}" is not text but {type(value).__name__}.')
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON may spell half of a surrogate pair
        raise UserError(
            f'{where}: "{text_key}" is not valid Unicode (a lone surrogate at character '
            f"{error.start})."
        ) from error
    return value
