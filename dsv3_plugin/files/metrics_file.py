"""`metrics.jsonl`: one JSON object per line, one line per step or evaluation."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3_plugin.files.atomic import append_to, replacing

Record = dict[str, Any]

_LONGEST_LINE = 8_000_000
"""Bytes; the loads of sixty layers of 256 experts are half a million."""
_LARGEST = 2**63


@dataclass(frozen=True)
class MetricsFile:
    """The numbers of a run; a run that has not begun has none, and no file."""

    path: Path

    def read(self) -> list[Record]:
        """Every record."""
        return list(self.stream())

    def stream(self) -> Iterator[Record]:
        """Every record, one in memory at a time."""
        for _, record in self._lines():
            yield record

    def damaged_lines(self) -> list[int]:
        """Numbers, from 1, of the lines that are no records."""
        return [n for n, line in enumerate(self._raw_lines(), start=1) if _record(line) is None]

    def append(self, record: Record) -> None:
        """Add one record. Raises UserError if a link lies where the file belongs."""
        with append_to(self.path) as file:
            file.write(json.dumps(record).encode() + b"\n")

    def keep_until(self, iteration: int) -> None:
        """Drop the records after `iteration`: a run resumed there will write them again."""
        if not self.path.exists():
            return
        with replacing(self.path) as shorter:
            for line, record in self._lines():
                if record["iteration"] <= iteration:
                    shorter.write(line.rstrip(b"\n") + b"\n")

    def follow(self) -> "Follower":
        """The records that are added from now on."""
        return Follower(self.path)

    def _lines(self) -> Iterator[tuple[bytes, Record]]:
        return _whole_lines(self._raw_lines())

    def _raw_lines(self) -> Iterator[bytes]:
        if not self.path.is_file():  # nor a pipe, which would be waited for without end
            return
        with self.path.open("rb") as file:
            yield from iter(lambda: file.readline(_LONGEST_LINE), b"")


class Follower:
    """Reads the records that are added to a file from now on, as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._identity()
        self._position = path.stat().st_size if path.exists() else 0
        self._began = time.time()

    def _identity(self) -> int | None:
        return self._path.stat().st_ino if self._path.exists() else None

    def new_records(self) -> list[Record]:
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
        records = [record for _, record in _whole_lines(whole.splitlines())]
        return [record for record in records if self._is_new(record.get("time"))]

    def _is_new(self, written: Any) -> bool:
        return isinstance(written, int | float) and written >= self._began


def number_in(record: Record, key: str) -> float | None:
    """A number of a record; None where nothing of that name is there, or something else.

    A loss may be infinite or no number at all; an integer beyond 64 bits is nobody's count.
    """
    value = record.get(key)
    if type(value) is int:
        return value if abs(value) < _LARGEST else None
    return value if type(value) is float else None


def _whole_lines(lines: Iterable[bytes]) -> Iterator[tuple[bytes, Record]]:
    """Lines that are records. What is none is passed over: a kill cuts the last of a start short,
    and what a disk damaged says nothing against the steps after it."""
    for line in lines:
        if (record := _record(line)) is not None:
            yield line, record


def _record(line: bytes) -> Record | None:
    """What a line says, None where it is no record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_record = isinstance(record, dict) and type(record.get("iteration")) is int
    return record if is_record else None
