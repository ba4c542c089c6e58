"""The documents of a corpus, read one at a time from text, JSON or parquet files.

Memory holds one document (of a parquet file: one small batch of rows), however large the corpus,
and a document is bounded, however large the file says it is.
"""

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from dsv3_plugin.data.corpus import Document, Source
from dsv3_plugin.data.expand import open_expanded
from dsv3_plugin.data.forms import TEXT, Content, Form
from dsv3_plugin.data.json_lines import MOST_BYTES, decode, in_one_document, json_lines, parse_row
from dsv3_plugin.data.kinds import BOM
from dsv3_plugin.data.left_out import CANNOT_BE_READ, ROWS, Tally
from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.sections import OnBadRow

# Of a text file that is no smaller on the disk: what is one document there takes what it takes.
MOST_BYTES_OF_A_FILE = 256 * 2**20

_PARQUET_ROWS = 64

SKIP = (
    "data.on_bad_row: skip in a recipe, or --on-bad-row skip where a command has it, leaves such "
    "rows out"
)


def read_documents(
    sources: Iterable[Source],
    form: Form = TEXT,
    *,
    on_bad_row: OnBadRow = "stop",
    left_out: Tally | None = None,
) -> Iterator[Document]:
    """The documents of a corpus, in order; empty ones are left out.

    Args:
        form: of rows of JSON and parquet.
        on_bad_row: `skip` leaves out what cannot be read as a document; of a damaged file, all from
            the damage on.
        left_out: counts what is left out.

    Raises:
        UserError: naming the file (and line or row) that cannot be read as documents.
    """
    left_out = Tally() if left_out is None else left_out

    for source in sources:
        for row in _rows(source, form):
            if isinstance(row, Document):
                if row.text:
                    yield row
                else:
                    left_out.add("documents", "empty", row.name)
            elif on_bad_row == "skip":
                left_out.add(ROWS, CANNOT_BE_READ, str(row).rstrip("."))
            else:
                raise UserError(f"{str(row).rstrip('.')}; {SKIP}.") from row


_Rows = Iterator[Document | UserError]
"""Documents, and errors in place of rows that are none."""


def _rows(source: Source, form: Form) -> _Rows:
    try:
        rows = _READERS[source.format](source, form)
        first = next(rows, None)
        if first is not None:
            yield first
            yield from rows
        elif not form.reads_text:
            yield UserError(f"{source.path} is empty: it holds no row.")
    except UserError as error:
        yield error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        yield UserError(f"cannot read {source.path}: {reason}.")


def _read_text(source: Source, form: Form) -> _Rows:
    where = str(source.path)
    if not form.reads_text:
        raise UserError(
            f"{where} is plain text, and rows of JSON or parquet are read, with "
            f"{' or '.join(form.keys)}."
        )
    most = max(MOST_BYTES, min(source.path.stat().st_size, MOST_BYTES_OF_A_FILE))
    with open_expanded(source.path) as file:
        way_out = "split it into several files, or write it as JSON lines"
        raw = _at_most(most, file, where, way_out)
    yield _document(source, source.name, Content(decode(raw, where)))


def _read_jsonl(source: Source, form: Form) -> _Rows:
    for number, value in json_lines(source.path):
        if isinstance(value, UserError):
            yield value
            continue
        try:
            content = form.content(value, f"{source.path} line {number}")
            yield _document(source, f"{source.name}:{number}", content)
        except UserError as error:
            yield error


def _read_json(source: Source, form: Form) -> _Rows:
    where = str(source.path)
    with open_expanded(source.path) as file:
        raw = _at_most(MOST_BYTES, file, where, "write one object per line (jq -c '.[]')")
    value = parse_row(raw, where)
    if not isinstance(value, list):
        yield _document(source, source.name, form.content(value, where))
        return
    for number, row in enumerate(value, start=1):
        try:
            content = form.content(row, f"{where} element {number}")
            yield _document(source, f"{source.name}:{number}", content)
        except UserError as error:
            yield error


def _read_parquet(source: Source, form: Form) -> _Rows:
    import pyarrow
    from pyarrow import parquet

    where = str(source.path)
    try:
        with parquet.ParquetFile(source.path) as file:
            columns = form.columns(file.schema_arrow.names, where)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                for filled in batch.to_pylist():
                    row = {key: _without_nulls(value) for key, value in filled.items()}
                    number += 1
                    try:
                        content = form.content(row, f"{where} row {number}")
                        yield _document(source, f"{source.name}:{number}", content)
                    except UserError as error:
                        yield error
    except pyarrow.ArrowException as error:
        raise UserError(f"{where} is not a readable parquet file: {error}.") from error


def _without_nulls(value: Any) -> Any:
    """Of a column, without what has no value: a table gives every struct the keys of all others."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value


_READERS = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "json": _read_json,
    "parquet": _read_parquet,
}


def _document(source: Source, name: str, content: Content) -> Document:
    """A document without byte order marks: at its start, and where files were joined, anywhere.

    As a letter, which joins words without a space, U+FEFF is deprecated since Unicode 3.2. What is
    learned in parts, by their places, stays as it is.
    """
    if content.spans is not None:
        return Document(name, content.text, source.kind, content.spans)
    return Document(name, content.text.replace(BOM, ""), source.kind)


def _at_most(most: int, file: BinaryIO, where: str, way_out: str) -> bytes:
    raw = file.read(most + 1)
    if len(raw) > most:
        raise UserError(f"{where} has more than {in_one_document(most)}: {way_out}.")
    return raw
