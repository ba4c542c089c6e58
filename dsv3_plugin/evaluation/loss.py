"""The loss of a model by position: nats of a token after so many others. No torch here."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy

LossesOf = Callable[[numpy.ndarray], numpy.ndarray]
"""From tokens int64 `[s + 1]` to the cross-entropy in nats of each but the first, `[s]`."""


@dataclass(frozen=True)
class Bucket:
    """Tokens that are predicted from `first` to `last` tokens of context.

    Attributes:
        tokens: how many were.
        loss: their mean, nats.
    """

    first: int
    last: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class Losses:
    """Losses on one set.

    Attributes:
        name: of the set.
        sequences: how many were read.
        by_position: the mean over sequences, nats; the token at place p was predicted from p + 1.
    """

    name: str
    sequences: int
    by_position: tuple[float, ...]

    @property
    def seq_length(self) -> int:
        return len(self.by_position)

    @property
    def tokens(self) -> int:
        """How many were predicted."""
        return self.sequences * self.seq_length

    @property
    def loss(self) -> float:
        """The mean over all tokens, nats."""
        return math.fsum(self.by_position) / self.seq_length

    @property
    def perplexity(self) -> float:
        """e to the loss; infinite where that is more than a float can be, beyond 709 nats."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """By context in powers of two: 1, 2, 3 to 4, 5 to 8, …; the last as far as there is."""

        def bucket(first: int, last: int) -> Bucket:
            losses = self.by_position[first - 1 : last]
            mean = math.fsum(losses) / len(losses)
            return Bucket(first, last, len(losses) * self.sequences, mean)

        return tuple(bucket(*ends) for ends in _powers(self.seq_length))


def _powers(most: int) -> Iterator[tuple[int, int]]:
    first, last = 1, 1
    while first <= most:
        yield first, min(last, most)
        first, last = last + 1, 2 * last


def losses_on(
    name: str,
    sequences: Iterable[numpy.ndarray],
    losses_of: LossesOf,
    tell: Callable[[int], None] = lambda done: None,
) -> Losses:
    """The mean losses of sequences of one length.

    Args:
        name: what they are.
        sequences: tokens int64 `[s + 1]` each, one at least.
        losses_of: the model.
        tell: called after each with how many are done.
    """
    total, done = numpy.zeros(1), 0
    for tokens in sequences:
        total = total + losses_of(tokens).astype(numpy.float64)
        done += 1
        tell(done)
    return Losses(name, done, tuple((total / done).tolist()))
