"""How uneven a load is. No torch here."""

from collections.abc import Sequence


def max_violation(load: Sequence[int]) -> float:
    """MaxVio = max load / mean load − 1 (arXiv 2408.15664, eq. 4): 0 is perfect balance.

    Args:
        load: tokens of each expert, rank or node.
    """
    return max(load) * len(load) / sum(load) - 1
