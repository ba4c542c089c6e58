"""One conversion at a time in a target folder."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from dsv3_plugin.checkpoint.conversion.stream import as_sentence
from dsv3_plugin.errors import UserError

# What a file system without locks answers to flock.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF}


@contextlib.contextmanager
def sole_writer(root: Path) -> Iterator[None]:
    """Holds the folder `root`, made if need be; one that is still empty at the end goes again.

    The folder itself is locked, so no lock file stays behind, and the kernel frees it with us.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    missing = [path for path in (root, *root.parents) if not path.exists()]
    with as_sentence(root):
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _is_ours(handle, root):
            raise UserError(
                f"another conversion is writing {root}: wait for it, or choose another folder."
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it is not empty
                for path in missing:
                    path.rmdir()
    finally:
        os.close(handle)


def _is_ours(handle: int, root: Path) -> bool:
    """Whether an open folder is locked now, until it is closed, and still there under its name."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    # The one before may have taken it away, empty, after we had opened it.
    return root.exists() and os.path.samestat(os.fstat(handle), root.stat())
