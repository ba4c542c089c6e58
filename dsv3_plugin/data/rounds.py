"""Which documents are packed together, without end: round after round of them.

A round is an epoch of all documents. Where the share of long documents is asked for, long and short
ones are two streams, each an endless row of its own seeded epochs, and a round takes from both in
that ratio: whole epochs of the one that repeats first, of the other what belongs to it. The rounds
are a function of the documents, the seed and the settings alone, however many are asked for.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy

from dsv3_plugin.data.packing import Packs, pack

_LEAST_SEQUENCES = 100
"""Of a round, whose last sequence may be all but empty: a hundredth of it at most."""


@dataclass(frozen=True)
class LongShare:
    """How much of the tokens are to come from long documents.

    Attributes:
        share: of the tokens, in [0, 1].
        least: tokens of a long document, at the least.
    """

    share: float
    least: int


class Pieces:
    """What documents are cut into: as many full sequences as there are in each, and the rest.

    Args:
        lengths: `[documents]`, in tokens.
        room: tokens of a sequence.
    """

    def __init__(self, lengths: numpy.ndarray, room: int) -> None:
        self.room = room
        self.lengths = numpy.asarray(lengths, numpy.int64)
        counts = -(-self.lengths // room)
        self.first = numpy.concatenate([[0], numpy.cumsum(counts)])
        """int64 `[documents + 1]`, the number of each document's first piece."""

    def of(self, documents: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
        """The numbers of documents' pieces, and their lengths."""
        counts = self.first[documents + 1] - self.first[documents]
        ends = numpy.cumsum(counts)
        numbers = numpy.repeat(self.first[documents] - (ends - counts), counts)
        numbers += numpy.arange(len(numbers))
        lengths = numpy.full(len(numbers), self.room)
        lengths[ends - 1] = self.lengths[documents] - (counts - 1) * self.room
        return numbers, lengths


def rounds(pieces: Pieces, seed: int, long: LongShare | None = None) -> Iterator[Packs]:
    """The packs of one round after the other.

    Args:
        pieces: of documents that have a token at least.
        seed: of all orders.
        long: the share of long documents; None: as they come.
    """
    streams = [
        (_Stream(documents, pieces.lengths[documents], (seed, which)), amount)
        for which, (documents, amount) in enumerate(_classes(pieces, long))
    ]
    for number in itertools.count():
        documents = numpy.concatenate(
            [
                stream.between(math.floor(number * amount), math.floor((number + 1) * amount))
                for stream, amount in streams
            ]
        )
        yield pack(*pieces.of(documents), pieces.room, (seed, len(streams), number))


def is_long(lengths: numpy.ndarray, least: int) -> numpy.ndarray:
    """Which documents are long ones."""
    return lengths >= least


def _classes(pieces: Pieces, long: LongShare | None) -> Iterator[tuple[numpy.ndarray, Fraction]]:
    """The documents that are drawn from by themselves, and the tokens of each in a round."""
    if long is None:
        yield numpy.arange(len(pieces.lengths)), Fraction(int(pieces.lengths.sum()))
        return
    are_long = is_long(pieces.lengths, long.least)
    share = Fraction(long.share)
    parts = [
        (numpy.flatnonzero(chosen), part)
        for chosen, part in ((are_long, share), (~are_long, 1 - share))
        if part > 0
    ]
    epoch = min(Fraction(int(pieces.lengths[chosen].sum())) / part for chosen, part in parts)
    assert epoch > 0, "a share of what is not there"
    epochs = math.ceil(_LEAST_SEQUENCES * pieces.room / epoch)
    for chosen, part in parts:
        yield chosen, part * epoch * epochs


class _Stream:
    """Documents in a row without end: epoch after epoch, each in an order of its own."""

    def __init__(
        self, documents: numpy.ndarray, lengths: numpy.ndarray, seed: tuple[int, int]
    ) -> None:
        self._documents, self._lengths, self._seed = documents, lengths, seed
        self._tokens = int(lengths.sum())
        self._epoch: int | None = None

    def between(self, begin: int, end: int) -> numpy.ndarray:
        """The documents whose first tokens lie between two places of the row."""
        found = [numpy.empty(0, numpy.int64)]
        for epoch in range(begin // self._tokens, -(-end // self._tokens)):
            self._turn_to(epoch)
            before = epoch * self._tokens
            low, high = numpy.searchsorted(self._starts, [begin - before, end - before])
            found.append(self._order[low:high])
        return numpy.concatenate(found)

    def _turn_to(self, epoch: int) -> None:
        if self._epoch != epoch:
            drawn = numpy.random.default_rng((*self._seed, epoch)).permutation(len(self._lengths))
            lengths = self._lengths[drawn]
            self._order, self._starts = self._documents[drawn], numpy.cumsum(lengths) - lengths
            self._epoch = epoch
