"""Fill-in-the-middle: some documents are trained on as prefix, suffix, middle.

Bavarian et al. 2022 (arXiv 2207.14255), as DeepSeek-V3 uses it (arXiv 2412.19437, section 4.1): at
document level before packing, in the order PSM,

    <|fim_begin|> prefix <|fim_hole|> suffix <|fim_end|> middle <|eos_token|>

The two cuts fall uniformly between characters, not tokens, so that a model meets holes that begin
and end inside words. Chance is a function of the seed and the document's text alone: neither the
order of documents nor the number of workers changes it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sentinels:
    """Token ids of the three FIM sentinels."""

    begin: int
    hole: int
    end: int


def cut(text: str, *, rate: float, seed: int) -> tuple[str, str, str] | None:
    """(prefix, middle, suffix) of a document chosen for FIM, None for one left as it is.

    A document is chosen with probability `rate`. Any of the three may be empty.
    """
    draw = hashlib.blake2b(
        text.encode(), digest_size=24, key=seed.to_bytes(8, "little", signed=True)
    ).digest()
    chance, first, second = (int.from_bytes(draw[i : i + 8], "little") for i in (0, 8, 16))
    if chance >= rate * 2**64:
        return None
    start, stop = sorted((first % (len(text) + 1), second % (len(text) + 1)))
    return text[:start], text[start:stop], text[stop:]


def join(
    prefix: Sequence[int], middle: Sequence[int], suffix: Sequence[int], sentinels: Sentinels
) -> list[int]:
    """The token ids of a cut document in the order PSM, without the end-of-document token."""
    return [
        sentinels.begin, *prefix, sentinels.hole, *suffix, sentinels.end, *middle,
    ]  # fmt: skip
