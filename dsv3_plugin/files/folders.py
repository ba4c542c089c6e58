"""Whole folders: one appears complete or not at all, whenever the process that makes it dies.

It is filled under another name beside its place, flushed to the disk, and renamed.
"""

import contextlib
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from dsv3_plugin.files.atomic import flush, sync_folder


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `target` when the block ends without an error.

    To be used while `target.parent` is held (`files.locks`): what killed builders left behind there
    is swept.

    Raises:
        OSError: the place cannot be written, or the disk is full.
    """
    mark = f".{target.name}.building-"
    for left_over in target.parent.glob(f"{glob.escape(mark)}*"):
        if left_over.is_symlink():
            left_over.unlink()
        else:
            shutil.rmtree(left_over)
    folder = target.with_name(mark + secrets.token_hex(8))
    folder.mkdir()
    try:
        yield folder
        for path in [folder, *folder.rglob("*")]:
            flush(path)
        _replace(target, folder, Path(f"{folder}-replaced"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(target: Path, folder: Path, aside: Path) -> None:
    """A kill between the two renames leaves no folder, never half of one.

    A link gives way itself; what it leads to stays.
    """
    if os.path.lexists(target):
        target.rename(aside)
    folder.rename(target)
    sync_folder(target.parent)
    if aside.is_symlink():
        aside.unlink()
    elif aside.exists():
        shutil.rmtree(aside)
