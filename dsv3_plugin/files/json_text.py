"""JSON that somebody else wrote: read with bounds, and strictly as the standard has it.

What is too large, too deep, says a key twice, or has a number that is none (NaN, Infinity, 1e999)
is refused before it costs anything; every refusal is a ValueError with the reason. Python's own
reader takes the last of two keys, and all the memory it is asked for.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from dsv3_plugin.numbers import bytes_text

MOST_BYTES = 100_000_000
"""As of a safetensors header; the largest files beside a model (its tokenizer's) have a tenth."""
MOST_VALUES = 2_000_000
"""A quarter of a million tensors in one safetensors header; all of DeepSeek-V3 has 92 thousand."""
MOST_DEEP = 64


class TooMuch(ValueError):
    """More bytes, values or levels than anybody means."""


class Repeated(ValueError):
    """An object has a key twice.

    Attributes:
        key: the key.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"the key '{key}' is given twice")
        self.key = key


def read(path: Path) -> Any:
    """What a file says.

    Raises:
        OSError: it cannot be read.
        ValueError: with the reason; it is not JSON, or too much of it.
    """
    return parse(read_plain(path))


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: as `read`, or it holds something else.
    """
    content = read(path)
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """A file's bytes, of which there are not too many.

    Raises:
        OSError: it cannot be read.
        ValueError: with the reason; it is larger than that.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise TooMuch(f"it is larger than {bytes_text(most)}")
    return data


def read_plain(path: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file in a folder that somebody else may have made.

    A pipe there would be waited for without end, and a device read without end.

    Raises:
        OSError: it cannot be read.
        ValueError: with the reason; it is larger than that, or no file.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is a device, a pipe or a folder, and not a file")
        data = file.read(most + 1)
    if len(data) > most:
        raise TooMuch(f"it is larger than {bytes_text(most)}")
    return data


def parse(data: bytes) -> Any:
    """What a text says, in UTF-8.

    Raises:
        ValueError: with the reason; it is not JSON, or too much of it.
    """
    # Each value but the first has one of these before it; strings may have more.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MOST_VALUES:
        raise TooMuch(f"it holds more than {MOST_VALUES:,} values")
    try:
        content = json.loads(
            data.decode(),
            object_pairs_hook=_once,
            parse_constant=_refuse,
            parse_float=_finite,
        )
    except RecursionError:
        raise TooMuch(f"it is nested deeper than {MOST_DEEP} levels") from None
    _refuse_depth(content)
    return content


def _refuse_depth(content: Any) -> None:
    """Whoever goes through it may go by recursion."""
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(MOST_DEEP):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise TooMuch(f"it is nested deeper than {MOST_DEEP} levels")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise Repeated(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return found


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is no number")
