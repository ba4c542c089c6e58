"""A number that was given with its unit (`400 Gb/s`) to a key that has one already, in that of the
key. No torch here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_NUMBER = r"(\d{1,18}(?:\.\d{1,18})?|\.\d{1,18})"
_MEASURED = re.compile(_NUMBER + r"\s*([A-Za-zµμ/][A-Za-zµμ/ ]{0,40})")
_CLOCK = re.compile(r"(?:(\d{1,4})-)?(\d{1,6}):([0-5]\d):([0-5]\d)")
"""Slurm's, with the days before a dash."""
_SHORT = {
    r" ?per ?sec(ond)?$": "/s", "^kilo(?=b)": "k", "^mega(?=b)": "M", "^giga(?=b)": "G",
    "^tera(?=b)": "T", "(?<=^[MGT])be$": "bit/s", "^micro(?=s)": "u", "^usecs?$|^useconds?$": "us",
}  # fmt: skip
"""What people write out → how units are written; the last of a network: `400 GbE`."""
_PREFIXES = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
_GIGA = 1e9
_BITS_OF_A_BYTE = 8


@dataclass(frozen=True)
class _Unit:
    """What the numbers of a key count.

    Attributes:
        name: of the unit.
        spellings: of it and of others that measure the same, each with how many of it that is.
        seconds: how many it has, where it is one of time.
    """

    name: str
    spellings: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None


_TIMES = {
    1e-9: ("ns",), 1e-6: ("us", "µs", "μs"), 1e-3: ("ms",), 1.0: ("s", "sec", "second", "seconds"),
    60.0: ("min", "minute", "minutes"), 3600.0: ("h", "hour", "hours"),
    86400.0: ("d", "day", "days"),
}  # fmt: skip


def _of_time(name: str, seconds: float, **also: float) -> _Unit:
    """A unit of time; `also`: what other letters mean beside it, in seconds."""
    known = {word: length / seconds for length, words in _TIMES.items() for word in words}
    more = {word: length / seconds for word, length in also.items()}
    return _Unit(name, known | more, None if seconds < 1 else seconds)


_UNITS = {
    "gb_per_second": _Unit("GB per second"),
    "gb": _Unit("GB"),
    "tflops": _Unit("TFLOP per second"),
    "us": _of_time("microseconds", 1e-6),
    "hours": _of_time("hours", 3600.0, m=60.0),
    "minutes": _of_time("minutes", 60.0, m=60.0),
    "seconds": _of_time("seconds", 1.0, m=60.0),
}
"""How a key ends → what its number counts."""


def as_written(keys: Sequence[int | str], value: str) -> str:
    """The end of a sentence on what is no number: how it is one of its key's unit.

    Args:
        keys: the path of the key.
        value: what stands there.

    Returns:
        Empty where the key has no unit.
    """
    ends = (
        unit
        for key in reversed(keys)
        for unit in _UNITS
        if isinstance(key, str) and f"_{key}".endswith(f"_{unit}")
    )
    end = next(ends, None)
    if end is None:
        return ""
    unit, text = _UNITS[end], value.strip()
    if (clock := _CLOCK.fullmatch(text)) and unit.seconds:
        days, hours, minutes, rest = (int(part or 0) for part in clock.groups())
        seconds = 86400 * days + 3600 * hours + 60 * minutes + rest
        return f", of {unit.name}: write {seconds / unit.seconds:g}"
    if re.fullmatch(_NUMBER, text):
        return f", of {unit.name}: write {text}, without quotes"
    if (measured := _MEASURED.fullmatch(text)) is None:
        return f", of {unit.name}, without a unit"
    number, word = float(measured[1]), _in_short(measured[2])
    if end == "gb_per_second" and (ambiguous := _bits_or_bytes(word)):
        as_bytes, as_bits = number * ambiguous, number * ambiguous / _BITS_OF_A_BYTE
        return (
            f", of {unit.name}: write {as_bytes:g} where these are bytes, and {as_bits:g} where "
            "they are bits, as data sheets of networks count"
        )
    factor = _factor(end, unit, word)
    if factor is None:
        return f", of {unit.name}, without a unit"
    if factor == 1:
        return f", of {unit.name}: write {measured[1]}"
    letter = "b(?!yte)" if end == "gb_per_second" else "bit"
    is_bits = end.startswith("gb") and re.search(letter, word) is not None
    which = f"{measured[1]} {word}{', which are bits,' if is_bits else ''}"
    return f", of {unit.name}: {which} are {number * factor:.6g}, so write {number * factor:.6g}"


def _in_short(word: str) -> str:
    """A unit as it is written, where it was written out."""
    for out, short in _SHORT.items():
        word = re.sub(out, short, word, flags=re.IGNORECASE)
    return word.strip()


def _bits_or_bytes(word: str) -> float | None:
    """In GB: what a bandwidth is counted in that does not say whether in bits or in bytes."""
    found = re.fullmatch(r"([kmgt])(?:b|b/s|bps)?|([KMGT])(?:B/S|BPS)?", word)
    if found is None:
        return None
    return _PREFIXES[(found[1] or found[2]).lower()] / _GIGA


def _factor(end: str, unit: _Unit, word: str) -> float | None:
    """How many of a key's unit a word means; None: it is none that measures the same."""
    if end == "tflops":
        found = re.fullmatch(r"([kmgtp])flops?(/s)?", word.lower())
        return None if found is None else _PREFIXES[found[1]] / 1e12
    if not end.startswith("gb"):
        return unit.spellings.get(word, unit.spellings.get(word.lower()))
    rate = r"(/s|/sec|ps|)" if end == "gb_per_second" else "()"
    found = re.fullmatch(r"([kKmMgGtT])(i?)(B|b|bytes?|Bytes?|bits?)" + rate, word)
    if found is None:
        # Memory is counted in bytes: 80G of it, and 80gb, are clear.
        alone = re.fullmatch("[kmgt]", word.lower()) if end == "gb" else None
        return None if alone is None else _PREFIXES[alone[0]] / _GIGA
    prefix, binary, what, _ = found.groups()
    power = "kmgt".index(prefix.lower()) + 1
    size = 1024**power if binary else 1000**power
    # Nobody counts memory in bits without writing them out.
    bits = (what == "b" and end != "gb") or what.startswith("bit")
    return size / _GIGA / (_BITS_OF_A_BYTE if bits else 1)
