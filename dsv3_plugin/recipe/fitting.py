"""Numbers that would fit where one does not: what a sentence says as the way out."""

import math
from collections.abc import Collection, Iterable, Sequence


def divisors(amount: int) -> list[int]:
    """All numbers that divide an amount, the smallest first."""
    small = [n for n in range(1, math.isqrt(amount) + 1) if amount % n == 0]
    return sorted({*small, *(amount // n for n in small)})


def nearest(candidates: Iterable[int], wanted: int) -> int:
    """The number that is the fewest times larger or smaller than one that is wanted."""
    return min(candidates, key=lambda n: (abs(math.log(n / wanted)), n))


def divisor(amount: int, wanted: int) -> int:
    """The divisor of an amount that is the nearest to a number which is none."""
    return nearest(divisors(amount), wanted)


def multiples(amount: float, of: int) -> str:
    """The multiples of a number between which an amount lies: `6 or 12`."""
    below = int(amount // of) * of
    return f"{below} or {below + of}" if below > 0 else str(of)


def one_of(candidates: Collection[int]) -> str:
    """A few numbers in words: `2, 4 or 8`."""
    *others, last = map(str, candidates)
    return f"{', '.join(others)} or {last}" if others else last


def all_of(words: Sequence[str]) -> str:
    """A few things in words: `heads, entries and tokens`."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
