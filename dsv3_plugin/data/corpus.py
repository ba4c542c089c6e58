"""A corpus is an ordered list of files; each is one document, or holds one per line or row.

`find_sources` turns what a user names (the Python standard library, files, folders) into that list;
`data.documents` reads it. The order is that of the names, so the same files give the same stream of
documents on every machine. What a folder holds beside documents is left out, and counted.
"""

import hashlib
import os
import stat
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dsv3_plugin.data.forms import TEXT, Form, Span
from dsv3_plugin.data.kinds import Format, NotRead, kind_by_name, kind_of, stem_of
from dsv3_plugin.data.left_out import LeftOut, Tally
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.recipe.corpora import STDLIB
from dsv3_plugin.recipe.sections import OnBadRow

# Outside of these, the standard library is ordinary source text that every installation has.
# Tests are left out because distributions package them apart, and because some of them are
# deliberately broken or not UTF-8.
_NOT_STDLIB = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__",
}  # fmt: skip
_GENERATED = ("_sysconfigdata", "config-")  # differ from machine to machine

# Beside shards a text file is about them, unless it has the name of a document, and not of these.
_DOCUMENT_SUFFIXES = (".txt", ".text")
_ABOUT_DATA = (
    "readme", "license", "licence", "copying", "notice", "citation", "changelog", "authors",
    "dataset_card", "datasheet", "sha256sum", "md5sum", "checksum", "requirements",
)  # fmt: skip

_HIDDEN = "hidden, their names begin with a dot"


@dataclass(frozen=True)
class Source:
    """One file of a corpus.

    Attributes:
        path: where it is.
        name: what errors and fingerprints call it: its path below what the user named.
        format: how documents are read from it.
    """

    path: Path
    name: str
    format: Format

    @property
    def kind(self) -> str:
        """What a table calls it: its format, of plain text also how the name ends."""
        suffix = Path(stem_of(self.path)).suffix if self.format == "text" else ""
        return f"{self.format} {suffix}".rstrip()


@dataclass(frozen=True)
class Document:
    """One document and where it came from (`file`, `file:line`, `file:row`).

    Attributes:
        kind: of the file it is from, see `Source.kind`.
        spans: what of the text is learned, in its order; None: all of it.
    """

    name: str
    text: str
    kind: str = "text"
    spans: tuple[Span, ...] | None = None

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that depend on the text alone: equal documents are told by equal digests."""
        return hashlib.blake2b(self.text.encode(), digest_size=16).digest()


def find_sources(
    corpus: str | Path | Sequence[str | Path],
    form: Form = TEXT,
    left_out: Tally | None = None,
    on_bad_row: OnBadRow = "stop",
) -> list[Source]:
    """The files of a corpus, in reading order.

    A folder stands for every file below it that holds documents. Links to files are read; links to
    folders, hidden files, pipes, and files that are not text, JSON or parquet are left out. Where
    files hold documents as rows, text files beside or above them are about these, and left out
    unless they are called `.txt`.

    Args:
        corpus: `"stdlib"` (the source of the running interpreter's standard library), a file, a
            folder, or a sequence of these.
        form: of rows.
        left_out: counts what is not read.
        on_bad_row: `skip` leaves out links to what is not there; they are refused otherwise.

    Raises:
        UserError: a path that does not exist or cannot be listed, a file named that holds no
            documents, one whose contents are not here, or no file at all.
    """
    named = [corpus] if isinstance(corpus, str | Path) else list(corpus)
    left_out = Tally() if left_out is None else left_out
    sources = [source for item in named for source in _expand(item, form, left_out, on_bad_row)]
    if not sources:
        what = ", ".join(str(item) for item in named) or "the corpus"
        if left_out.all():
            raise UserError(f"{what} holds no files that are read: {left_out}.")
        raise UserError(f"{what} holds no files: name files or folders with documents in them.")
    return sources


def _expand(
    item: str | Path, form: Form, left_out: Tally, on_bad_row: OnBadRow
) -> Iterable[Source]:
    if item == STDLIB:
        return _standard_library()
    path = named(item)
    if path.is_dir():
        return _folder(path, form, left_out, on_bad_row)
    if not path.exists():
        way_out = "a file or a folder of conversations"
        if form.reads_text:
            way_out = (
                f'a file, a folder, or "{STDLIB}" for the source of the Python standard library'
            )
        raise UserError(f"corpus {path} does not exist: name {way_out}.")
    if not path.is_file():  # a pipe: it can be read, but once
        return [Source(path, path.name, kind_by_name(path))]
    kind = kind_of(path, form.keys)
    if isinstance(kind, NotRead):
        raise UserError(f"{path} holds no documents that are read: it is {kind.why}.")
    return [Source(path, path.name, kind)]


def _folder(root: Path, form: Form, left_out: Tally, on_bad_row: OnBadRow) -> Iterator[Source]:
    kinds = {path: kind_of(path, form.keys) for path in _files_below(root, left_out, on_bad_row)}
    above_data = {
        folder
        for path, kind in kinds.items()
        if (kind.is_data if isinstance(kind, NotRead) else kind != "text")
        for folder in path.parents
    }
    for path, kind in kinds.items():
        name = f"{root.name}/{path.relative_to(root).as_posix()}"
        if isinstance(kind, NotRead):
            left_out.add("files", kind.why, name)
        elif kind == "text" and path.parent in above_data and not _is_document_by_name(path):
            left_out.add("files", "about the rows beside them; name them to have them read", name)
        else:
            yield Source(path, name, kind)


def _is_document_by_name(path: Path) -> bool:
    stem = stem_of(path)
    return stem.endswith(_DOCUMENT_SUFFIXES) and not stem.startswith(_ABOUT_DATA)


def _standard_library() -> Iterator[Source]:
    root = Path(sysconfig.get_path("stdlib"))
    found = False
    for path in _files_below(root, Tally()):  # the choice of its files is ours, not the user's
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


def _files_below(root: Path, left_out: Tally, on_bad_row: OnBadRow = "stop") -> Iterator[Path]:
    """Files below `root`, sorted by their parts, hidden, special and linked folders left out.

    Raises:
        UserError: a folder cannot be listed, or a file cannot be found where a link says it is,
            unless such are to be skipped.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot list {error.filename}: {error.strerror}.") from error

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        here = Path(folder)
        for name in sorted(subfolders):
            below = (here / name).relative_to(root.parent).as_posix()
            if name.startswith("."):
                left_out.add("folders", _HIDDEN, below)
            elif (here / name).is_symlink():
                left_out.add("folders", "links to folders; name them to have them read", below)
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not name.startswith(".") and not (here / name).is_symlink()
        )
        for name in sorted(names):
            path = here / name
            below = path.relative_to(root.parent).as_posix()
            if name.startswith("."):
                left_out.add("files", _HIDDEN, below)
            elif on_bad_row == "skip" and path.is_symlink() and not path.exists():
                left_out.add("files", "links to what is not there", below)
            elif stat.S_ISREG(_status(path).st_mode):
                yield path
            else:
                left_out.add("files", "pipes, sockets or devices", below)


def corpus_names(corpus: str | Path | Sequence[str | Path]) -> list[str]:
    """The corpus as a dataset's manifest names it."""
    named = [corpus] if isinstance(corpus, str | Path) else corpus
    return [str(item) for item in named]


def file_signature(sources: Iterable[Source], left_out: Iterable[LeftOut] = ()) -> str:
    """A fingerprint that changes when a file is added, removed or written, read otherwise or not.

    It reads no contents.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for things in left_out:
        hasher.update(repr(things).encode())
    for source in sources:
        status = _status(source.path)
        hasher.update(
            repr((source.name, source.format, status.st_size, status.st_mtime_ns)).encode()
        )
    return hasher.hexdigest()


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError as error:
        if path.is_symlink():
            raise UserError(
                f"cannot read {path}: it is a link to {path.readlink()}, which is not there; bring "
                "that back, or remove the link."
            ) from error
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
