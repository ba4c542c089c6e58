"""What could not be written, and why: a full disk or another reason, in words."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from dsv3_plugin.errors import UserError

# EFBIG: a file may grow no further, by the limit of the shell (`ulimit -f`) or of the file system.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEXTS = (*(os.strerror(number) for number in _FULL), "No space left", "] . unexpected pos ")
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


def reason(error: OSError) -> str:
    """Why something could not be written, in the system's words.

    `shutil` gathers what went wrong with each file in one error that has no words of its own.
    """
    if isinstance(error, shutil.Error) and error.args and error.args[0]:
        *_, first = error.args[0][0]
        return str(first).partition("] ")[2].partition(": ")[0] or str(first)
    return error.strerror or str(error)


@contextlib.contextmanager
def write_errors_as(sentence: Callable[[str], str]) -> Iterator[None]:
    """What the system refuses in the block becomes a sentence for the person.

    Args:
        sentence: makes it of the reason.

    Raises:
        UserError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(sentence(reason(error))) from error


def _free_bytes(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free
    return _NEXT_TO_NOTHING
