"""Which tokens of a sequence the ranks of a context-parallel group hold.

A causal sequence costs more the further it goes, so a rank holds one part of its beginning and the
matching part of its end: of 2N equal chunks, rank r of N has chunk r and chunk 2N - 1 - r, in this
order. In a pack every sample is divided so by itself. That is how upstream hands out batches
(`megatron.core.utils.get_batch_on_this_cp_rank`) and what its RoPE assumes.

Everything here is slices along the sequence, in order: `torch.cat([x[s] for s in slices])`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dsv3_plugin.errors import UserError


@dataclass(frozen=True)
class Zigzag:
    """How a sequence, or a pack of samples, lies on the ranks of a group.

    Attributes:
        rank: in the group.
        size: of the group, N.
        lengths: of the samples with their padding, in tokens; one for a plain sequence.

    Raises:
        UserError: a sample does not divide into 2N chunks.
    """

    rank: int
    size: int
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        odd = [length for length in self.lengths if length % (2 * self.size)]
        if odd:
            raise UserError(
                f"a sequence of {odd[0]} tokens does not divide by twice context {self.size}: pad "
                f"it to a multiple of {2 * self.size}"
            )

    @property
    def tokens(self) -> int:
        """Of the whole sequence."""
        return sum(self.lengths)

    def rows(self, rank: int | None = None) -> list[slice]:
        """Where in the whole sequence what a rank (by default this one) holds stands."""
        return [
            slice(start + part.start, start + part.stop)
            for start, length in zip(_starts(self.lengths), self.lengths, strict=True)
            for part in self._parts(length, self.rank if rank is None else rank)
        ]

    @property
    def positions(self) -> list[slice]:
        """Positions of this rank's tokens, each sample counted from 0."""
        return [part for length in self.lengths for part in self._parts(length, self.rank)]

    @property
    def by_rank(self) -> list[slice]:
        """Where in the whole sequence stands what the ranks hold, one rank after the other."""
        return [rows for rank in range(self.size) for rows in self.rows(rank)]

    @property
    def in_order(self) -> list[slice]:
        """Where in what the ranks hold, one after the other, the whole sequence stands."""
        pieces = self.by_rank
        starts = _starts([piece.stop - piece.start for piece in pieces])
        order = sorted(range(len(pieces)), key=lambda index: pieces[index].start)
        return [
            slice(starts[i], starts[i] + pieces[i].stop - pieces[i].start)
            for i in order
            if pieces[i].stop > pieces[i].start
        ]

    @property
    def halves(self) -> list[tuple[slice, slice]]:
        """Each chunk of this rank: where it stands here, and the keys up to its end.

        The keys are those of the whole sequence, from the beginning of the chunk's sample; the last
        token of the chunk is the last of them.
        """
        pairs = []
        here = 0
        for start, length in zip(_starts(self.lengths), self.lengths, strict=True):
            for part in self._parts(length, self.rank):
                own = part.stop - part.start
                pairs.append((slice(here, here + own), slice(start, start + part.stop)))
                here += own
        return [pair for pair in pairs if pair[0].stop > pair[0].start]

    def _parts(self, length: int, rank: int) -> tuple[slice, slice]:
        """A rank's two chunks of a sample."""
        chunk = length // (2 * self.size)
        last = 2 * self.size - 1 - rank
        return slice(rank * chunk, (rank + 1) * chunk), slice(last * chunk, (last + 1) * chunk)


def taken(whole: Tensor, slices: Sequence[slice], dim: int = 0) -> Tensor:
    """The slices of a tensor along a dimension, one after the other."""
    return torch.cat([whole.narrow(dim, s.start, s.stop - s.start) for s in slices], dim=dim)


def _starts(lengths: Sequence[int]) -> list[int]:
    return [0, *accumulate(lengths)][:-1]
