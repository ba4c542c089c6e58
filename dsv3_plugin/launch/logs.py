"""The logs of ranks: a line for each start of the run, and what was written since. No torch."""

import os
import re
import time
from pathlib import Path

_START = re.compile(r"^--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d ---$", re.MULTILINE)
_LONGEST = 1 << 20
"""Bytes of a log's end that are read: what ends a rank is written last."""


def start_line() -> bytes:
    """What a log has where a run is started: the time, in a line of its own."""
    return f"\n--- {time.strftime('%Y-%m-%d %H:%M:%S')} ---\n".encode()


def since_start(log: Path) -> str:
    """The end of a log, as far as the run wrote it since it was started last."""
    return since_start_in(end_of(log)[0])


def since_start_in(text: str) -> str:
    """What of the end of a log the run wrote since it was started last."""
    return _START.split(text)[-1]


def end_of(log: Path) -> tuple[str, int]:
    """The end of a file, and how many bytes it had; nothing where nobody has begun to write it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST))
            return file.read().decode(errors="replace"), file.tell()
    except OSError:
        return "", 0
