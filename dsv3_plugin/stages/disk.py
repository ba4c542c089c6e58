"""Telling a full disk from other errors. No torch here."""

import contextlib
import errno
import shutil
from pathlib import Path

from dsv3_plugin.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_TEXTS = ("No space left", "Disk quota exceeded", "] . unexpected pos ")
_NEXT_TO_NOTHING = 1 << 20


def is_full(error: BaseException | None, folder: Path | None = None) -> bool:
    """Whether an error came of a full disk.

    Some layers keep only the text of the error beneath them, and torch's own file writer only
    finds that its position is not what it wrote. Where they keep nothing, the disk of `folder`
    itself is asked.
    """
    while error is not None:
        if getattr(error, "errno", None) in _FULL or any(text in str(error) for text in _TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return folder is not None and _free_bytes(folder) < _NEXT_TO_NOTHING


def _free_bytes(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free
    return _NEXT_TO_NOTHING


def user_error_in(error: BaseException | None) -> UserError | None:
    """The sentence for the user among the causes of an error; upstream wraps what it calls."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__ or error.__context__
    return None
