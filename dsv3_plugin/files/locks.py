"""One process at a time in a folder.

The kernel frees a lock together with the process that holds it, however that ends. On file systems
without locks everybody is let in.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

from dsv3_plugin.files.json_text import read_plain

# What a file system without locks answers to flock. EBADF: NFS, which locks only what is open for
# writing, and a folder cannot be.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF}

_LONGEST = 500
"""Bytes of a signature."""


def take(folder: Path, lock_file: str | None = None) -> "FolderLock | None":
    """Hold a folder, which is made if need be; None: another process holds it.

    Args:
        folder: the folder.
        lock_file: name of a file in it to lock, which stays where other things do. Over NFS only
            this keeps others out. None: the folder itself is locked, and no file stays behind.

    Raises:
        OSError: the folder cannot be made, or not be locked.
    """
    while True:
        lock = FolderLock(folder, lock_file)
        if not lock.acquire(wait=False):
            lock.close()
            return None
        if lock.is_in_place():
            return lock
        lock.close()


def is_held(lock_file: Path) -> bool:
    """Whether a process of this machine holds a folder by that file of it.

    Read from the kernel's list: to try the lock, however briefly, could turn a run away.
    """
    try:
        file = lock_file.stat()
        held = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return False
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    return any(device in line.split() for line in held.splitlines())


def signature(lock_file: Path) -> str:
    """Who holds a folder by that file of it, as they said so themselves; empty if they did not."""
    try:
        return read_plain(lock_file, _LONGEST).decode(errors="replace").strip()
    except (OSError, ValueError):
        return ""


def wait_for(folder: Path, waiting: Callable[[], None]) -> "FolderLock":
    """Hold a folder, which is made if need be, as soon as no other process does.

    Args:
        folder: the folder, which is locked itself.
        waiting: called once, if another process holds it.

    Raises:
        OSError: the folder cannot be made, or not be locked.
    """
    has_waited = False
    while True:
        lock = FolderLock(folder)
        if not lock.acquire(wait=False):
            if not has_waited:
                waiting()
            has_waited = True
            lock.acquire(wait=True)
        if lock.is_in_place():
            return lock
        lock.close()


class FolderLock:
    """A folder to be held until a `with` block ends; see `take` and `wait_for`.

    Where nothing came into the folder by then, it goes again, with the parents made for it.
    """

    def __init__(self, folder: Path, lock_file: str | None = None) -> None:
        self._folder, self._place = folder, folder / (lock_file or "")
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        how = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW if lock_file else os.O_RDONLY | os.O_DIRECTORY
        self._handle = os.open(self._place, how, 0o644)

    def acquire(self, *, wait: bool) -> bool:
        """Whether it is locked now, until it is closed."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                self.close()
                raise
        return True

    def is_in_place(self) -> bool:
        """Whether what is locked has its name still: the holder before may have removed it."""
        try:
            return os.path.samestat(os.fstat(self._handle), self._place.stat())
        except FileNotFoundError:
            return False

    def sign(self, who: str) -> None:
        """Say in the lock's file who holds it, for those who wait on this machine or another."""
        with contextlib.suppress(OSError):  # the disk is full: nothing depends on it
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, who.encode()[:_LONGEST], 0)
            os.fsync(self._handle)

    def close(self) -> None:
        """Let the next one in."""
        os.close(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the folder is not empty
            if self._place != self._folder and [*self._folder.iterdir()] == [self._place]:
                self._place.unlink()
            for path in self._made:
                path.rmdir()
        self.close()
