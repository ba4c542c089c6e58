"""A file that a person asked for appears whole or not at all, and an older one stays until then."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Where to write what is to become `path`: beside it, with the same suffix.

    When the block ends well the new file takes the place of `path`; otherwise it is removed. What
    is no file (`/dev/stdout`) has no place to take and is written itself.

    Raises:
        OSError: as writing `path` itself would.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file() and not target.is_dir():
        yield Path(path)
        return
    beside = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
