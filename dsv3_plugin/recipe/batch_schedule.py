"""The batch-size curve as it runs: whole multiples of what all data-parallel ranks take at once.

A schedule is a short list of (tokens, batch) entries, the form of upstream's
`--step-batch-size-schedule`. It also answers what needs no training to know: how many tokens
2000 steps are, and how many steps a token budget is.
"""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

from dsv3_plugin.recipe.curve import Curve, Segment

_MOST_LEVELS = 10_000


@dataclass(frozen=True)
class BatchSchedule:
    """Batch size in sequences from each position on, in tokens; the first position is 0."""

    entries: tuple[tuple[int, int], ...]
    seq_length: int

    @property
    def last(self) -> int:
        """The batch that the schedule ends with."""
        return self.entries[-1][1]

    def batch(self, tokens: int) -> int:
        """The batch size of the step that begins after `tokens` consumed tokens."""
        return self.entries[self._index(tokens)][1]

    def tokens_after(self, start: int, steps: int) -> int:
        """The position `steps` steps after position `start`, in tokens."""
        position = start
        while steps > 0:
            step_tokens, taken = self._stride(position, math.inf)
            taken = min(taken, steps)
            position += int(taken) * step_tokens
            steps -= int(taken)
        return position

    def steps_until(self, tokens: int) -> int:
        """The number of steps from 0 that consume at least `tokens` tokens."""
        position = steps = 0
        while position < tokens:
            step_tokens, taken = self._stride(position, tokens)
            position += int(taken) * step_tokens
            steps += int(taken)
        return steps

    def levels(self, steps: int) -> list[tuple[int, int]]:
        """(batch, how many steps have it) of the first `steps` steps, in their order."""
        found = []
        position = 0
        while steps > 0:
            step_tokens, taken = self._stride(position, math.inf)
            number = int(min(taken, steps))
            found.append((step_tokens // self.seq_length, number))
            position += number * step_tokens
            steps -= number
        return found

    def _index(self, tokens: int) -> int:
        return bisect.bisect_right(self.entries, tokens, key=itemgetter(0)) - 1

    def _stride(self, position: int, limit: float) -> tuple[int, float]:
        """(tokens of a step, steps of that size) until the batch changes or `limit` is reached."""
        index = self._index(position)
        if index + 1 < len(self.entries):
            limit = min(limit, self.entries[index + 1][0])
        step_tokens = self.entries[index][1] * self.seq_length
        steps = limit if limit == math.inf else -((position - limit) // step_tokens)
        return step_tokens, steps

    def argument(self) -> str:
        """Upstream's `--step-batch-size-schedule`: "0:3072 38168166400:3200 …"."""
        return " ".join(f"{start}:{batch}" for start, batch in self.entries)


def batch_schedule(curve: Curve, multiple: int, seq_length: int) -> BatchSchedule:
    """The schedule of a batch-size curve.

    The batch is the largest multiple of `multiple` that the curve allows, and changes at the first
    sequence boundary where it can.

    Args:
        curve: sequences over consumed tokens.
        multiple: sequences that all ranks take at once.
        seq_length: tokens per sequence.

    Raises:
        ValueError: with the sentence; the curve asks for less than one `multiple`, or begins or
            ends a piece at a size that is no multiple.
    """
    if (size := odd_size(curve, multiple)) is not None:
        if size < 1:
            raise ValueError(f"batch size {size:g} is less than 1, and a step has sequences")
        raise ValueError(f"batch size {size:g} is not a multiple of {multiple} sequences")
    entries: list[tuple[int, int]] = []
    for segment in curve.segments:
        for sample, batch in _levels(segment, multiple, seq_length):
            if not entries or entries[-1][1] != batch:
                entries.append((sample * seq_length, batch))
    last = curve.segments[-1]
    if last.end is not None and entries[-1][1] != int(last.last):
        entries.append((-(-last.end // seq_length) * seq_length, int(last.last)))
    return BatchSchedule(tuple(entries), seq_length)


def settled(consumed: Callable[[int], int], most: int) -> int:
    """The tokens of a run of so many steps whose batch size changes at shares of these tokens.

    Args:
        consumed: the tokens that the steps take where they are believed to be so many; it raises
            ValueError where its pieces would not fit into them.
        most: what they can be at the most.
    """
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        try:
            enough = consumed(middle) <= middle
        except ValueError:
            enough = False
        low, high = (low, middle) if enough else (middle + 1, high)
    return high


def sizes(curve: Curve) -> list[float]:
    """What the pieces of a batch-size curve begin and end with."""
    return [size for segment in curve.segments for size in (segment.first, segment.last)]


def odd_size(curve: Curve, multiple: int) -> float | None:
    """The first size of a batch-size curve's pieces that is no multiple of so many sequences."""
    return next((size for size in sizes(curve) if size < multiple or size % multiple), None)


def _levels(segment: Segment, multiple: int, seq_length: int) -> list[tuple[int, int]]:
    """(sample, batch) wherever the batch changes within a segment, which is monotone.

    A segment shorter than a sequence may hold no sample at all.
    """

    def level(sample: int) -> int:
        # The small addend forgives the last bit lost in the curve's arithmetic.
        return int(segment(sample * seq_length) / multiple + 1e-9) * multiple

    sample = -(-segment.start // seq_length)
    if segment.end is not None and sample * seq_length >= segment.end:
        return []
    levels = [(sample, level(sample))]
    if segment.end is None or segment.shape == "constant":
        return levels
    last = -(-segment.end // seq_length) - 1
    while sample < last and level(last) != levels[-1][1]:
        current = levels[-1][1]
        sample = bisect.bisect_left(
            range(sample + 1, last + 1), True, key=lambda at: level(at) != current
        ) + (sample + 1)
        levels.append((sample, level(sample)))
        if len(levels) > _MOST_LEVELS:
            raise ValueError(
                f"it would take more than {_MOST_LEVELS:,} different batch sizes on its way to "
                f"{segment.last:g}"
            )
    return levels
