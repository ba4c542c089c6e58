"""Long documents: how many there are, and how a share of them is reached without another mixture.

The members of a mixture keep their weights, and the long documents of each are read more often than
its short ones (arXiv 2402.10171 finds that better than more of the members that happen to have
them). Members that have long documents alone, or none, stay as they are, and the others make up for
them. Without weights the mixture is free: all long documents are alike then, and all short ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from dsv3_plugin.data.rounds import is_long
from dsv3_plugin.errors import UserError


@dataclass(frozen=True)
class ByLength:
    """How many documents and tokens are long, and how many short.

    Attributes:
        least: tokens of a long document, at the least.
        longest, median: tokens of a document.
    """

    least: int
    long_documents: int
    long_tokens: int
    short_documents: int
    short_tokens: int
    longest: int
    median: int

    @property
    def tokens(self) -> int:
        return self.long_tokens + self.short_tokens

    @property
    def share(self) -> float:
        """Of the tokens, those of long documents."""
        return self.long_tokens / self.tokens


@dataclass(frozen=True)
class Drawn:
    """How a member is drawn from.

    Attributes:
        weight: its share of the sequences, in proportion to the others'.
        long_share: the share of its tokens that come from long documents; None: as they come.
    """

    weight: float
    long_share: float | None


def by_length(lengths: numpy.ndarray, least: int) -> ByLength:
    """Count the documents of these lengths."""
    long = is_long(lengths, least)
    return ByLength(
        least=least,
        long_documents=int(long.sum()),
        long_tokens=int(lengths[long].sum(dtype=numpy.int64)),
        short_documents=int((~long).sum()),
        short_tokens=int(lengths[~long].sum(dtype=numpy.int64)),
        longest=int(lengths.max()),
        median=int(numpy.partition(lengths, len(lengths) // 2)[len(lengths) // 2]),
    )


def by_powers_of_four(lengths: numpy.ndarray) -> list[tuple[int, int, int]]:
    """(Tokens at the least, documents, their tokens), for each power of four that has documents."""
    powers = 4 ** numpy.arange(16, dtype=numpy.int64)  # a length is an int32
    which = numpy.searchsorted(powers, lengths, side="right") - 1
    documents = numpy.bincount(which, minlength=len(powers))
    tokens = numpy.bincount(which, weights=lengths, minlength=len(powers))
    return [
        (int(power), int(number), int(total))
        for power, number, total in zip(powers, documents, tokens, strict=True)
        if number
    ]


def drawn(
    found: Sequence[ByLength], weights: Sequence[float] | None, share: float | None
) -> list[Drawn]:
    """How members are drawn from, so that a share of all tokens comes from long documents.

    Args:
        found: what each member has.
        weights: as the recipe gives them; None: it gives none.
        share: of the tokens; None: as they come.

    Raises:
        UserError: there are no long documents, or no short ones, or with these weights no such
            share.
    """
    if share is None:
        tokens = [float(each.tokens) for each in found]
        return [Drawn(weight, None) for weight in weights or tokens]
    _refuse_nothing(found, share)
    if weights is None or len(found) == 1:
        return [_by_class(each, found, share) for each in found]
    parts = [weight / sum(weights) for weight in weights]
    only_long = sum(part for part, each in zip(parts, found, strict=True) if not each.short_tokens)
    only_short = sum(part for part, each in zip(parts, found, strict=True) if not each.long_tokens)
    both = 1 - only_long - only_short
    rest = share - only_long
    if not -_EXACT <= rest <= max(both, 0) + _EXACT:
        raise UserError(
            f"data.long_document_share {share:g} cannot be had with these weights, only "
            f"{only_long:.3g} to {1 - only_short:.3g}: members without documents of at least "
            f"{found[0].least:,} tokens have {only_short:.1%} of the weight, members with no "
            f"others {only_long:.1%}; change the weights or the share."
        )
    of_both = min(max(rest / both, 0.0), 1.0) if both > _EXACT else None
    return [
        Drawn(part, of_both if each.long_tokens and each.short_tokens else None)
        for part, each in zip(parts, found, strict=True)
    ]


_EXACT = 1e-9
"""Of sums of weights."""


def _by_class(each: ByLength, found: Sequence[ByLength], share: float) -> Drawn:
    """A member of a mixture without weights: its part of all long and of all short tokens."""
    long = share * each.long_tokens / max(sum(one.long_tokens for one in found), 1)
    short = (1 - share) * each.short_tokens / max(sum(one.short_tokens for one in found), 1)
    both = each.long_tokens and each.short_tokens and long + short
    return Drawn(long + short, long / (long + short) if both else None)


def _refuse_nothing(found: Sequence[ByLength], share: float) -> None:
    least, longest = found[0].least, max(each.longest for each in found)
    medians = " and ".join(f"{each.median:,}" for each in found)
    there = f"the longest has {longest:,}, half of them have at least {medians}"
    if share > 0 and not any(each.long_tokens for each in found):
        raise UserError(
            f"data.long_document_share {share:g} needs long documents, and none has {least:,} "
            f"tokens ({there}): take a corpus with longer ones, or a smaller data.long_document."
        )
    if share < 1 and not any(each.short_tokens for each in found):
        raise UserError(
            f"data.long_document_share {share:g} needs short documents too, and all have {least:,} "
            f"tokens or more ({there}): take 1, or a larger data.long_document."
        )
