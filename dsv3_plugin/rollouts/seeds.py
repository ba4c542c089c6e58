"""Seeds that follow from another, and from a number below it."""

import hashlib


def seed_below(seed: object, number: int) -> int:
    """A seed of its own for each number, below 2^63.

    Args:
        seed: of what they are parts of: anything whose `repr` tells it.
        number: of the part.
    """
    named = hashlib.blake2b(repr((seed, number)).encode(), digest_size=8).digest()
    return int.from_bytes(named) >> 1
