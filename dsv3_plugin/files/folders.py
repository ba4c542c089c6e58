"""A folder that appears complete or not at all, whenever the process that makes it dies.

It is filled under another name beside its place, flushed to disk, and renamed. Only one process at
a time works in one place; what a killed one left behind is swept by the next.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dsv3_plugin.errors import UserError

# What a file system without locks answers to flock.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextlib.contextmanager
def sole_builder(target: Path) -> Iterator[None]:
    """Wait until no other process builds beside `target`, and keep others waiting meanwhile.

    Raises:
        UserError: the place cannot be written.
    """
    with _reporting(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # The folder itself is locked, so no lock file stays behind.
        handle = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _reporting(target):
            _lock(handle)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


@contextlib.contextmanager
def filling(target: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `target` when the block ends without an error.

    To be used inside `sole_builder(target)`.

    Raises:
        UserError: the place cannot be written, or the disk is full.
    """
    mark = f".{target.name}.building-"
    with _reporting(target):
        for left_over in target.parent.glob(f"{mark}*"):
            shutil.rmtree(left_over)
        folder = Path(tempfile.mkdtemp(prefix=mark, dir=target.parent))
        try:
            # mkdtemp makes it private; a dataset is shared like any other folder.
            folder.chmod(0o777 & ~_umask())
            yield folder
            _flush(folder)
            _replace(target, folder, Path(f"{folder}-replaced"))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _replace(target: Path, folder: Path, aside: Path) -> None:
    """A kill between the two renames leaves no dataset, never half of one."""
    if target.exists():
        target.rename(aside)
    folder.rename(target)
    if aside.exists():
        shutil.rmtree(aside)


def _flush(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def _reporting(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}; make room, or choose another "
            "place. Nothing was changed."
        ) from error
