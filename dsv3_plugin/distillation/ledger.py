"""The file of samples, and beside it what is finished: a problem is in both, or in neither.

Samples of a problem are appended and flushed to the disk, then a line to the ledger that says how
large the file is with them. Whatever a kill leaves behind that is cut off at the next start.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from dsv3_plugin.errors import UserError
from dsv3_plugin.files import locks
from dsv3_plugin.files.atomic import append_to, sync_folder

ENDING = ".progress"
_COMPRESSED = (".gz", ".zst")


class Ledger:
    """Samples as they are found; use as a context.

    Args:
        path: the file of samples. Beside it, with `.progress` behind its name, is the ledger.
        settings: of the work; another start goes on only with the same.

    Attributes:
        finished: problems, by their keys.
        counts: "problems" that are finished, and of these "answers", "kept", "samples".
        rejected: answers, by the reason.
        barren: finished problems of which no answer was kept.

    Raises:
        UserError: the file cannot be written, is somebody else's, was begun with other settings, or
            another process writes it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._ledger = path.with_name(path.name + ENDING)
        self.finished: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.barren = 0
        if path.name.endswith(_COMPRESSED):
            raise UserError(f"{path} would be written as it is: name a file without that ending.")
        if path.is_dir():
            raise UserError(f"{path} is a folder: name a file, such as {path / 'samples.jsonl'}.")
        self._stack = ExitStack()
        try:
            self._open(dict(settings))
        except OSError as error:
            self._stack.close()
            raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, problem: str, rows: Iterable[Mapping[str, Any]], told: Mapping[str, Any]) -> None:
        """A problem is finished.

        Args:
            problem: its key.
            rows: its samples.
            told: "answers" and "kept" of it, and "rejected" by the reason.

        Raises:
            OSError: the disk is full.
        """
        lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
        self._samples.writelines(lines)
        _last(self._samples)
        line = {"problem": problem, "size": self._samples.tell(), "samples": len(lines), **told}
        self._lines.write(json.dumps(line).encode() + b"\n")
        _last(self._lines)
        self._count(line)

    def _count(self, line: Mapping[str, Any]) -> None:
        self.finished.add(line["problem"])
        self.counts["problems"] += 1
        self.counts.update({key: line[key] for key in ("answers", "kept", "samples")})
        self.rejected.update(line["rejected"])
        self.barren += not line["kept"]

    def _open(self, settings: dict[str, Any]) -> None:
        if not self.path.parent.is_dir():
            raise UserError(
                f"{self.path} cannot be written: there is no folder {self.path.parent}."
            )
        if self.path.exists() and self.path.stat().st_size and not self._ledger.exists():
            raise UserError(f"{self.path} exists already: name another file, or remove it.")
        lock = locks.take(self.path.parent, self._ledger.name)
        if lock is None:
            raise UserError(f"another process writes {self.path} at the moment.")
        self._stack.enter_context(lock)
        size, whole = self._read(settings)
        self._lines = self._stack.enter_context(append_to(self._ledger))
        self._lines.truncate(whole)
        if not whole:
            self._lines.write(json.dumps({"settings": settings}).encode() + b"\n")
            _last(self._lines)
        self._samples = self._stack.enter_context(append_to(self.path))
        if self._samples.seek(0, os.SEEK_END) < size:
            raise UserError(
                f"{self.path} is shorter than {self._ledger.name} beside it says: remove both to "
                "begin again."
            )
        self._samples.truncate(size)
        self._samples.seek(size)  # where the next are appended, which is asked for
        sync_folder(self.path.parent)

    def _read(self, settings: Mapping[str, Any]) -> tuple[int, int]:
        """Bytes of samples, and of the ledger, that are whole."""
        size = whole = 0
        with self._ledger.open("rb") as file:
            for line in file:
                told = _told(line)
                if told is None:  # a kill cut it short
                    break
                if "settings" in told:
                    self._refuse_other(told["settings"], settings)
                else:
                    size = told["size"]
                    self._count(told)
                whole += len(line)
        return size, whole

    def _refuse_other(self, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        for key, value in settings.items():
            if before.get(key) != value:
                raise UserError(
                    f"{self.path} was begun with {key} {_said(before.get(key))}, and not "
                    f"{_said(value)}: go on with that, or name another file."
                )


def _told(line: bytes) -> dict[str, Any] | None:
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _said(value: Any) -> str:
    return "unsaid" if value is None else json.dumps(value)


def _last(file: BinaryIO) -> None:
    """Have what was written last."""
    file.flush()
    os.fsync(file.fileno())
