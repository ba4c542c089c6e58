"""Whole files: a file appears complete or not at all, and an older one stays until then.

It is written under another name beside its place, flushed to the disk, and takes the place in one
step. The name cannot be foreseen and is created by us or not at all, so nobody who may write into
the folder can have put a link there for us to follow.
"""

import contextlib
import errno
import glob
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dsv3_plugin.errors import UserError

_TOKEN_BYTES = 8
_ENDING = ".tmp"


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Where to write what is to become `path`, for a file that a person asked for.

    It lies beside `path`, exists, and has the same suffix (which tells some writers the format).
    When the block ends well it takes the place of `path`; otherwise it is removed. A link keeps its
    name and gets a new target; what is no file (`/dev/stdout`) has no place to take and is written
    itself.

    Raises:
        OSError: as writing `path` itself would.
    """
    target = Path(path).resolve()
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if target.exists() and not target.is_file():
        yield Path(path)
        return
    handle, beside = _create(target, target.stem, target.suffix)
    os.close(handle)
    try:
        yield beside
        flush(beside, os.O_NOFOLLOW)
        os.replace(beside, target)
        sync_folder(target.parent)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write that takes the place of `path` when the block ends well, and lasts.

    For files of a folder that this process alone writes: what a killed one before left is swept.

    Raises:
        OSError: as writing `path` itself would.
    """
    sweep(path)
    handle, beside = _create(path, path.name, _ENDING)
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    sync_folder(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all, and make that last; see `replacing`.

    Raises:
        OSError: as writing `path` itself would.
    """
    with replacing(path) as file:
        file.write(data)


def append_to(path: Path) -> BinaryIO:
    """A file of a name that anybody knows beforehand, opened at its end; made if need be.

    Raises:
        UserError: it is a link. Its target would be written to.
        OSError: it cannot be opened.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return open(os.open(path, flags, 0o666), "ab")
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise UserError(
                f"{path} is a link, and what it leads to is not ours: remove it."
            ) from error
        raise


def sweep(path: Path) -> None:
    """Remove what killed writers of `path` left beside it."""
    any_token = "[0-9a-f]" * (2 * _TOKEN_BYTES)
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.{any_token}{_ENDING}"):
        left_over.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make names created in (or removed from) a folder last."""
    flush(folder, os.O_DIRECTORY)


def flush(path: Path, how: int = 0) -> None:
    """Make what is in a file, or the names in a folder, last.

    Args:
        path: the file or folder.
        how: further flags to open it with.
    """
    descriptor = os.open(path, os.O_RDONLY | how)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path, beginning: str, ending: str) -> tuple[int, Path]:
    """A new file beside `path`, open for writing, and its name."""
    beside = path.with_name(f".{beginning}.{secrets.token_hex(_TOKEN_BYTES)}{ending}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        return os.open(beside, flags, 0o666), beside
    except OSError as error:
        error.filename = str(path)  # the one that somebody asked for
        raise
