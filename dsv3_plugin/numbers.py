"""Numbers as people read them: counts, tokens, times and bytes, each rounded to what they need.

How a number is written into a recipe is another matter (`recipe.amounts`): that writing is exact,
and is read back.
"""

from decimal import Decimal

_UNITS = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3))
_BYTES = (("EB", 1e18), ("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def count_text(number: int, decimals: int = 1) -> str:
    """Parameters, operations: 671026404352 as 671.0B."""
    for unit, size in _UNITS:
        if number >= size:
            return f"{number / size:.{decimals}f}{unit}"
    return str(number)


def number_of(number: int, one: str, more: str | None = None) -> str:
    """So many things: `1 rank`, `2 ranks`, and with the other word given `2,048 processes`."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def tokens_text(tokens: float) -> str:
    """Tokens, in four digits without trailing zeros: 14800000000000 as 14.8T."""
    for unit, size in _UNITS:
        if tokens >= size:
            return f"{tokens / size:.4g}{unit}"
    return f"{tokens:.0f}"


def time_text(seconds: float) -> str:
    """A duration in its two largest units: 5400 seconds as 1h30m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def bytes_text(number: float) -> str:
    """Bytes in powers of 1000, as disks and safetensors shards count: 5000000000 as 5.0 GB."""
    for unit, size in _BYTES:
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return "1 byte" if number == 1 else f"{number:.0f} bytes"


def figure_text(number: float, digits: int = 4) -> str:
    """An estimate in so many significant digits: 2788123 as 2.788M, 0.0123456 as 0.01235."""
    if not number:
        return "0"
    for unit, size in _UNITS:
        if abs(number) >= size:
            return f"{_significant(number / size, digits)}{unit}"
    return _significant(number, digits)


def money_text(amount: float, currency: str, digits: int = 4) -> str:
    """Money: 5576000 as $5.576M, of other currencies EUR 5.576M."""
    figure = figure_text(amount, digits)
    return f"${figure}" if currency == "USD" else f"{currency} {figure}"


def _significant(number: float, digits: int) -> str:
    """A number in so many digits, zeros at their end included, without an exponent."""
    return f"{Decimal(f'{number:#.{digits}g}'):f}".removesuffix(".")
