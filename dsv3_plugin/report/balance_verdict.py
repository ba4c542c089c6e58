"""Whether a load of experts is good: a number of a step in one word, and what it costs.

The marks are what trainings were published to keep to (arXiv 2408.15664, table 2, over a whole
held-out set, mean of layers): a router bias 0.04, a balance loss 0.52 and 0.72. A step has fewer
tokens, so what chance alone makes of as many is granted besides.
"""

import math
from collections.abc import Sequence
from typing import Literal

from dsv3_plugin.dispatch.balance import max_violation

Word = Literal["good", "fair", "uneven", "bad"]

_UP_TO: tuple[tuple[float, Word], ...] = ((0.1, "good"), (0.75, "fair"), (2.0, "uneven"))

_SURE = 20
"""Tokens of an expert in the mean beyond which one without any is no accident (e⁻²⁰)."""

EXPLAINED = (
    "good: up to 0.1, as a router bias keeps it; fair: to 0.75, as a balance loss does; uneven: to "
    "2; bad: beyond, or experts without a token. What chance makes of so few tokens is granted."
)
"""The words, in a sentence; the marks are in `verdict`."""


def chance(load: Sequence[float]) -> float:
    """MaxVio that is to be expected of so many tokens to experts that are all as likely.

    The largest of X draws around a mean of m lies about sqrt(2 ln X) deviations of sqrt(m) above.

    Args:
        load: tokens of each expert. `[X]`
    """
    mean = sum(load) / len(load)
    return math.sqrt(2 * math.log(len(load)) / mean)


def verdict(load: Sequence[float]) -> Word:
    """A layer's load of experts in a word.

    Args:
        load: tokens of each expert in a step; some expert has one. `[X]`
    """
    if min(load) == 0 and sum(load) / len(load) >= _SURE:
        return "bad"
    beyond = max_violation(load) - chance(load)
    return next((word for most, word in _UP_TO if beyond <= most), "bad")
