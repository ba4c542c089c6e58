"""The size of a shard, as people write it."""

import re

from dsv3_plugin.errors import UserError

DEFAULT_SHARD = 5 * 10**9

_LEAST_SHARD = 10**6
"""Bytes that a person can mean: 5 was meant as GB."""
_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3}
_UNITS |= {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


def shard_bytes(text: str) -> int:
    """Bytes of a shard size as people write it: "5GB" is 5·10⁹, "5GiB" 5·2³⁰."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    size = 0
    if match:
        base = 1024 if match[3] else 1000
        size = int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))
    if size < 1:
        raise UserError(f"'{text}' is no size of a shard; write for example 5GB or 500MB.")
    if size < _LEAST_SHARD:
        raise UserError(
            f"a shard of '{text}' would be less than 1MB, a file for nearly each tensor: write "
            "for example 5GB or 500MB."
        )
    return size


def shard_text(size: int) -> str:
    """Bytes as `shard_bytes` reads them, exactly, with a unit where one fits: 5·10⁹ as 5GB."""
    for unit, of_one in _UNITS.items():
        text = f"{size / of_one:.6g}"
        if size >= of_one and "e" not in text and int(float(text) * of_one) == size:
            return text + unit
    return str(size)
