"""The file `INCOMPLETE` of a conversion's target: its mark, and its memory.

It is there from before the target's first byte until after its last, so nobody takes the target for
complete. Its first line says what is being converted; every further line names tensors that are on
the disk, with their checksums. A line is written after the bytes it vouches for have been synced,
so what a line says holds after a kill and after a power cut; what no line says is done again.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsv3_plugin.checkpoint.tracker import replace_file
from dsv3_plugin.errors import UserError

Checksums = dict[str, list[str]]
"""Target tensor → CRC-32 of each of its pieces, in hexadecimal."""

_COMMIT_BYTES = 2 << 30
_COMMIT_SECONDS = 20.0
"""A line is due after so many bytes or seconds: what a kill can cost."""


class Journal:
    """Notes finished tensors, in batches."""

    def __init__(self, path: Path, sync: Callable[[], None]) -> None:
        """`sync` makes all bytes of the target written so far last."""
        self._path, self._sync = path, sync
        self._batch: Checksums = {}
        self._bytes, self._since = 0, time.monotonic()

    def add(self, checksums: Checksums, nbytes: int) -> None:
        """Notes tensors of `nbytes` bytes that have been written (though not synced)."""
        self._batch |= checksums
        self._bytes += nbytes
        if self._bytes >= _COMMIT_BYTES or time.monotonic() - self._since >= _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Makes everything noted so far last."""
        if self._batch:
            self._sync()
            with self._path.open("ab") as handle:
                handle.write(_line({"done": self._batch}))
                handle.flush()
                os.fsync(handle.fileno())
        self._batch, self._bytes, self._since = {}, 0, time.monotonic()


def begin(path: Path, header: dict[str, Any], done: Checksums) -> None:
    """Starts a journal, with what an earlier run has finished."""
    replace_file(path, _line(header) + (_line({"done": done}) if done else b""))


def read(path: Path, header: dict[str, Any]) -> Checksums:
    """What an earlier run has finished.

    Raises UserError if that run converted something else than `header` says. A last line that was
    cut short by a kill counts for nothing.
    """
    done: Checksums = {}
    with path.open("rb") as handle:
        lines = [line for line in handle if line.endswith(b"\n")]
    try:
        first = json.loads(lines[0]) if lines else header
        for line in lines[1:]:
            done |= json.loads(line)["done"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged; remove {path.parent} and start again.") from error
    for key, value in header.items():
        if first.get(key) != value:
            raise UserError(
                f"{path.parent} was begun with {key} {first.get(key)!r}, not {value!r}: repeat "
                "the first command with --resume, or remove the folder."
            )
    return done


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"
