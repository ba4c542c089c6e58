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
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST))
            text = file.read().decode(errors="replace")
    except OSError:  # the rank has not begun to write one
        return ""
    return _START.split(text)[-1]
