"""Which conversations are packed together, epoch after epoch.

In an epoch every conversation is there once. Where files have weights it has as many conversations
as the files have together, of each file its share: an endless row of the file's own epochs is cut
into those parts. All orders are drawn from a seed, so an epoch is a function of the lengths, the
weights, the seed and its number alone, and a run goes on where it was without reading what was.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy

from dsv3_plugin.data.packing import Packs, pack


@dataclass(frozen=True)
class Epochs:
    """The epochs of some files of conversations.

    Attributes:
        lengths: of each file, int `[conversations]`, in tokens.
        weights: of the files; None: every conversation once.
        room: tokens of a sequence.
        multiple: what the places that a conversation takes are a multiple of; the rest is padding.
        seed: of all orders.
    """

    lengths: Sequence[numpy.ndarray]
    weights: Sequence[float] | None
    room: int
    multiple: int
    seed: int

    def epoch(self, number: int) -> Packs:
        """The conversations in each sequence of an epoch; those of all files are numbered in a
        row."""
        conversations = self._drawn(number)
        lengths = numpy.concatenate(self.lengths).astype(numpy.int64)[conversations]
        places = -(-lengths // self.multiple) * self.multiple
        return pack(conversations, places, self.room, (self.seed, number))

    def _drawn(self, number: int) -> numpy.ndarray:
        counts = [len(lengths) for lengths in self.lengths]
        if self.weights is None:
            return numpy.arange(sum(counts))
        whole = Fraction(sum(counts)) / sum(Fraction(weight) for weight in self.weights)
        first, drawn = 0, [numpy.empty(0, numpy.int64)]
        for file, (count, weight) in enumerate(zip(counts, self.weights, strict=True)):
            begin, end = (math.floor((number + more) * Fraction(weight) * whole) for more in (0, 1))
            drawn += [first + part for part in _between(begin, end, count, (self.seed, file))]
            first += count
        return numpy.concatenate(drawn)


def _between(begin: int, end: int, count: int, seed: tuple[int, int]) -> list[numpy.ndarray]:
    """Of a row without end, epoch after epoch of `count`, what lies between two places."""
    parts = []
    for epoch in range(begin // max(count, 1), -(-end // max(count, 1))):
        order = numpy.random.default_rng((*seed, epoch)).permutation(count)
        parts.append(order[max(begin - epoch * count, 0) : end - epoch * count])
    return parts
