"""The file `INCOMPLETE` of a conversion's target: its mark, and its memory.

It is there from before the target's first byte until after its last, so nobody takes the target for
complete. Its first line says what is being converted; every further line names tensors that are on
the disk, with their checksums. A line is written after the bytes it vouches for have been synced,
so what a line says holds after a kill and after a power cut; what no line says is done again.
"""

import json
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsv3_plugin.checkpoint.formats.shard_size import DEFAULT_SHARD, shard_text
from dsv3_plugin.errors import UserError, causes
from dsv3_plugin.files import json_text
from dsv3_plugin.files.atomic import append_to, replace_file

Checksums = dict[str, list[str]]
"""Target tensor → CRC-32 of each of its pieces, in hexadecimal."""


class OtherTargetError(UserError):
    """A folder holds something else than (the beginning of) the conversion that is asked for."""


_COMMIT_BYTES = 2 << 30
_COMMIT_SECONDS = 20.0
"""A line is due after so many bytes or seconds: what a kill can cost."""

_MOST_BYTES = 10**18
"""Of a shard: a mark that is no journal of ours may say anything."""
_HOW_READ = ("allow_pickle", "without_mtp")
"""Options by which a source is read: what came of them is told by its tensors."""
_OPTIONS = ("dtype", "fp8", "fp8_rule", "shard_size", "shards_as", *_HOW_READ)
"""Of a first line, what is an option with its value."""


class Journal:
    """Notes finished tensors, in batches."""

    def __init__(self, path: Path, sync: Callable[[], None]) -> None:
        """`sync` makes all bytes of the target written so far last."""
        self._path, self._sync = path, sync
        self._batch: Checksums = {}
        self._bytes, self._since = 0, time.monotonic()
        self._failed = False

    def add(self, checksums: Checksums, nbytes: int) -> None:
        """Notes tensors of `nbytes` bytes that have been written (though not synced)."""
        self._batch |= checksums
        self._bytes += nbytes
        if self._bytes >= _COMMIT_BYTES or time.monotonic() - self._since >= _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Makes everything noted so far last.

        After a failure it does nothing any more: the kernel lets go of bytes that did not reach the
        disk and would call a second sync a success, and the last line may have been cut short.
        """
        if self._failed:
            return
        if self._batch:
            self._failed = True
            try:
                self._sync()
            except KeyboardInterrupt as stopped:  # no failure of the disk: it can be tried again
                self._failed = any(isinstance(cause, OSError) for cause in causes(stopped))
                raise
            with append_to(self._path) as handle:
                handle.write(_line({"done": self._batch}))
                handle.flush()
                os.fsync(handle.fileno())
            self._failed = False
        self._batch, self._bytes, self._since = {}, 0, time.monotonic()


def begin(path: Path, header: dict[str, Any], done: Checksums) -> None:
    """Starts a journal, with what an earlier run has finished."""
    replace_file(path, _line(header) + (_line({"done": done}) if done else b""))


def read(path: Path, header: dict[str, Any]) -> Checksums:
    """What an earlier run has finished.

    Raises OtherTargetError if that run converted something else than `header` says. A last line
    that was cut short by a kill counts for nothing.
    """
    first, done = peek(path)
    if first:
        require_same(path.parent, first, header)
    return done


def peek(path: Path) -> tuple[dict[str, Any], Checksums]:
    """What is converted, by the first line (empty if it was not written), and what is finished."""
    done: Checksums = {}
    try:
        lines = [
            line for line in json_text.read_plain(path).splitlines(True) if line.endswith(b"\n")
        ]
        first = dict(json_text.parse(lines[0])) if lines else {}
        for line in lines[1:]:
            done |= {str(name): [*map(_crc, crcs)] for name, crcs in _done(line).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        sentence = f"{path} is damaged; remove {path.parent} and start again."
        raise OtherTargetError(sentence) from error
    return first, done


def require_same(folder: Path, earlier: dict[str, Any], header: dict[str, Any]) -> None:
    """Raises OtherTargetError if `folder` was begun with something else than `header` says."""
    for key, value in header.items():
        before = earlier.get(key)
        # The files of the tokenizer were not noted by 0.1.
        if key in _HOW_READ or before == value or (isinstance(value, dict) and key not in earlier):
            continue
        if isinstance(value, dict):
            before = before if isinstance(before, dict) else {}
            file = next(f for f in {**before, **value} if before.get(f) != value.get(f))
            what = "size or time of change" if key == "source_files" else "content"
            raise OtherTargetError(
                f"{folder} was begun when {file} in {header['source']} had another {what}: put "
                "that file back, or remove the folder."
            )
        if key in ("source_tensors", "dropped"):
            raise OtherTargetError(
                f"{folder} was begun when {header['source']} had other tensors, or another "
                "configuration: put those back, or remove the folder."
            )
        raise OtherTargetError(
            f"{folder} was begun {_option(key, before)}, not {_option(key, value)}: repeat the "
            "first command with --resume, or remove the folder."
        )


def command_to_go_on(folder: Path, first: dict[str, Any]) -> str:
    """The command that goes on with a conversion, as a shell takes it.

    Args:
        folder: the target.
        first: what is converted, by the first line; nothing where that is not known.
    """
    if first.get("conversion") not in ("import", "export") or "source" not in first:
        return "the same command with --resume"
    words = ["dsv3", first["conversion"], str(first["source"]), str(folder)]
    given = {key: first[key] for key in _OPTIONS if first.get(key) not in (None, False)}
    if given.get("shard_size") == DEFAULT_SHARD:
        del given["shard_size"]
    for key, value in given.items():
        words += [_called(key), *([] if value is True else [_typed(key, value)])]
    return shlex.join([*words, "--resume"])


def _done(line: bytes) -> Checksums:
    return json_text.parse(line)["done"]


def _crc(text: str) -> str:
    """A checksum; ValueError for what is none."""
    int(text, 16)
    return text


def _option(key: str, value: Any) -> str:
    """How a user said it: an option that was left out is None or False here."""
    if value is None or value is False:
        return f"without {_called(key)}"
    return f"with {_called(key)}" + ("" if value is True else f" {_typed(key, value)}")


def _called(key: str) -> str:
    return f"--{key.replace('_', '-')}" if key in _OPTIONS else key


def _typed(key: str, value: Any) -> str:
    """The value of an option, as a person types it."""
    is_size = key == "shard_size" and isinstance(value, int) and value < _MOST_BYTES
    return shard_text(value) if is_size else str(value)


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"
