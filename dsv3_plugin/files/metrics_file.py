"""`metrics.jsonl`: one JSON object per line, one line per step or evaluation. No torch here."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def _whole_lines(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines that parse; a last line cut short by a kill ends the iteration."""
    for line in lines:
        try:
            yield line, json.loads(line)
        except json.JSONDecodeError:
            return


def read(path: Path) -> list[dict[str, Any]]:
    """Every record of a metrics file."""
    return list(stream(path))


def stream(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file, one in memory at a time."""
    with path.open(encoding="utf-8") as lines:
        for _, record in _whole_lines(lines):
            yield record


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one record."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def keep_until(path: Path, iteration: int) -> None:
    """Drop the records after `iteration`: a run resumed there will write them again."""
    if not path.exists():
        return
    lines = [
        line + "\n"
        for line, record in _whole_lines(path.read_text(encoding="utf-8").splitlines())
        if record["iteration"] <= iteration
    ]
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(lines), encoding="utf-8")
    os.replace(scratch, path)


class Follower:
    """Reads the records that are added to a file from now on, as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._identity()
        self._position = path.stat().st_size if path.exists() else 0
        self._began = time.time()

    def _identity(self) -> int | None:
        return self._path.stat().st_ino if self._path.exists() else None

    def new_records(self) -> list[dict[str, Any]]:
        """The records added since the last call."""
        file = self._identity()
        if file is None:
            return []
        if file != self._file:  # `keep_until` put a shorter one in its place
            self._file, self._position = file, 0
        with self._path.open("rb") as handle:
            handle.seek(self._position)
            whole, newline, _ = handle.read().rpartition(b"\n")
        self._position += len(whole) + len(newline)
        records = [record for _, record in _whole_lines(whole.decode().splitlines())]
        return [record for record in records if record["time"] >= self._began]
