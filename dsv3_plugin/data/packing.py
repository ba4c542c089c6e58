"""Whole documents into sequences: best-fit decreasing, over lengths and not over documents.

Every document that fits into a sequence stays in one piece; of a longer one each full sequence is a
piece, and so is the rest. The pieces, longest first, go each into the sequence that has the least
room left for it (best-fit decreasing; arXiv 2404.10830 packs pretraining data so). Pieces of one
length are alike to it, so it runs over the lengths there are, whichever documents have them; those
are dealt afterwards, in a seeded order.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

import numpy


@dataclass(frozen=True)
class Packs:
    """Pieces in sequences, in the order in which they are read.

    Attributes:
        pieces: int64, the pieces of one sequence after the other.
        starts: int64 `[sequences + 1]`, where each begins in `pieces`.
    """

    pieces: numpy.ndarray
    starts: numpy.ndarray


@dataclass(frozen=True)
class _Alike:
    """Sequences that hold pieces of the same lengths: the last so many, before them those of
    `before`."""

    length: int
    times: int
    before: "_Alike | None"


def pack(pieces: numpy.ndarray, lengths: numpy.ndarray, room: int, seed: object) -> Packs:
    """Pack pieces, each once, into as few sequences as best-fit decreasing finds.

    Args:
        pieces: int64 `[n]`, what they are called.
        lengths: `[n]` in tokens, 1 to `room`.
        room: tokens of a sequence.
        seed: decides which of the pieces of a length goes where, the order in a sequence and that
            of the sequences (what `numpy.random.default_rng` takes).
    """
    draw = numpy.random.default_rng(seed)
    shuffled = draw.permutation(len(pieces))
    by_length = shuffled[numpy.argsort(lengths[shuffled], kind="stable")]
    counts = numpy.bincount(lengths, minlength=room + 1)
    dealt = numpy.concatenate([[0], numpy.cumsum(counts)])[:-1]  # of each length, so far
    rows, sizes = [], []
    for count, alike in _best_fit(counts, room):
        columns = []
        while alike is not None:
            begin = dealt[alike.length]
            dealt[alike.length] = end = begin + count * alike.times
            columns.append(by_length[begin:end].reshape(count, alike.times))
            alike = alike.before
        filled = draw.permuted(numpy.concatenate(columns, axis=1), axis=1)
        rows.append(pieces[filled].ravel())
        sizes.append(numpy.full(count, filled.shape[1]))
    if not rows:
        return Packs(numpy.empty(0, numpy.int64), numpy.zeros(1, numpy.int64))
    return _reordered(numpy.concatenate(rows), numpy.concatenate(sizes), draw)


def _best_fit(counts: numpy.ndarray, room: int) -> Iterator[tuple[int, _Alike]]:
    """How many sequences are filled alike, and with what.

    Args:
        counts: `[room + 1]`, the pieces of each length.
    """
    open_ones: dict[int, list[tuple[int, _Alike]]] = {}  # by the room left
    rooms: list[int] = []  # of those, in order

    def put(left: int, count: int, alike: _Alike) -> None:
        if left not in open_ones:
            open_ones[left] = []
            bisect.insort(rooms, left)
        open_ones[left].append((count, alike))

    for length in map(int, numpy.flatnonzero(counts)[::-1]):
        pieces = int(counts[length])
        while pieces:
            place = bisect.bisect_left(rooms, length)
            if place == len(rooms):
                left, count, alike = room, pieces, None  # new ones, as many as are needed
            else:
                left = rooms[place]
                count, alike = open_ones[left].pop()
                if not open_ones[left]:
                    del open_ones[left], rooms[place]
            # One that has taken a piece has less room than the others: it takes the next as well.
            times = min(left // length, pieces)
            filled = min(count, pieces // times)
            put(left - times * length, filled, _Alike(length, times, alike))
            pieces -= filled * times
            if alike is not None and count > filled:
                put(left, count - filled, alike)
    for groups in open_ones.values():
        yield from groups


def _reordered(pieces: numpy.ndarray, sizes: numpy.ndarray, draw: numpy.random.Generator) -> Packs:
    """The sequences in another order."""
    order = draw.permutation(len(sizes))
    old_starts = numpy.cumsum(sizes) - sizes
    starts = numpy.concatenate([[0], numpy.cumsum(sizes[order])])
    shift = numpy.repeat(old_starts[order] - starts[:-1], sizes[order])
    return Packs(pieces[shift + numpy.arange(len(pieces))], starts)
