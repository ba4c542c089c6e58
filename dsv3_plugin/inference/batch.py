"""The tokens of a step, laid out for a model: one row for each, those of equal sequences together.

Everything that a model does to a token by itself is done to all rows at once. Attention alone looks
at sequences: those that compute few tokens against a long past do it together, absorbed (see
attention.py), the others one by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import batched

import torch
from torch import Tensor

from dsv3_plugin.inference.pages import PAGE_TOKENS, pages_for

POSITIONS_AT_ONCE = 2**16
"""So many are read out of their pages at once, or those of one text: 75 MB of a layer of
DeepSeek-V3 in BF16, however many texts there are and however many of them share a page."""


@dataclass(frozen=True)
class Span:
    """What one sequence computes.

    Attributes:
        tokens: ids.
        start: position of the first.
        pages: of the sequence, for all its positions up to the last of these.
    """

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]

    @property
    def end(self) -> int:
        """Position behind the last token."""
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class Group:
    """Sequences that compute equally many tokens, and attend together.

    Attributes:
        rows: of the batch.
        table: [b, pages], what they read; short ones are filled up with pages of their own, so that
            no text, NaN included, has a part in another.
        hidden: bool [b, count, 1, positions], True where a token must not look.
        absorbed: by which way they attend.
        lengths: positions of each, those computed included.
    """

    rows: slice
    table: Tensor
    hidden: Tensor
    absorbed: bool
    lengths: list[int]


@dataclass(frozen=True)
class Batch:
    """Rows and groups.

    Attributes:
        ids, positions, slots: [t], of each row: token, place in its text, place in the cache.
        groups: all rows, in their order.
        rows_of: for each span its rows.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    groups: list[Group]
    rows_of: list[slice]


def batch_of(
    spans: Sequence[Span], absorbed: Callable[[int, int], bool], device: torch.device
) -> Batch:
    """Lay out spans.

    Args:
        spans: of the step; none where only other ranks have tokens.
        absorbed: whether so many tokens against so many positions are better absorbed.
        device: of the model.
    """
    together = _together(spans, absorbed)
    order = [number for members, _ in together for number in members]
    rows_of = [slice(0)] * len(spans)
    row = 0
    for number in order:
        rows_of[number] = slice(row, row := row + len(spans[number].tokens))
    laid = [spans[number] for number in order]
    positions = [place for span in laid for place in range(span.start, span.end)]
    slots = [
        span.pages[place // PAGE_TOKENS] * PAGE_TOKENS + place % PAGE_TOKENS
        for span in laid
        for place in range(span.start, span.end)
    ]
    ids = [token for span in laid for token in span.tokens]
    groups = [
        _group(
            [spans[number] for number in members],
            slice(rows_of[members[0]].start, rows_of[members[-1]].stop),
            absorbed=is_absorbed,
            device=device,
        )
        for members, is_absorbed in together
    ]
    rows = torch.tensor([ids, positions, slots], dtype=torch.int64, device=device)
    return Batch(*rows, groups, rows_of)


def _together(
    spans: Sequence[Span], absorbed: Callable[[int, int], bool]
) -> list[tuple[list[int], bool]]:
    """Numbers of the spans that attend together, and whether absorbed."""
    alike: dict[tuple[int, int], list[int]] = {}
    alone: list[int] = []
    for number, span in enumerate(spans):
        count = len(span.tokens)
        if absorbed(count, span.end):
            # Filled up to a power of two, so that a short text reads less than twice what it has.
            alike.setdefault((count, (span.end - 1).bit_length()), []).append(number)
        else:
            alone.append(number)
    groups = [([number], False) for number in alone]
    for members in alike.values():
        longest = pages_for(max(spans[number].end for number in members)) * PAGE_TOKENS
        most = max(1, POSITIONS_AT_ONCE // longest)
        groups += [(list(some), True) for some in batched(members, most)]
    return groups


def _group(spans: list[Span], rows: slice, *, absorbed: bool, device: torch.device) -> Group:
    lengths = [span.end for span in spans]
    pages = pages_for(max(lengths))
    table = [[*span.pages[:pages], *span.pages[:1] * (pages - len(span.pages))] for span in spans]
    places = torch.arange(pages * PAGE_TOKENS, device=device)
    starts = torch.tensor([span.start for span in spans], device=device)
    own = starts[:, None] + torch.arange(len(spans[0].tokens), device=device)
    return Group(
        rows,
        torch.tensor(table, device=device),
        (places > own[..., None])[:, :, None],
        absorbed,
        lengths,
    )
