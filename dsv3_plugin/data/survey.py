"""One pass over a corpus before building: how much there is, and where the held-out part ends.

A document is held out by the hash of its text, so the choice does not depend on order, place or
number of workers, a document that appears twice never stands on both sides, and adding documents
moves none of the others.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dsv3_plugin.data.corpus import Document
from dsv3_plugin.data.left_out import Tally
from dsv3_plugin.errors import UserError

_HASHES = 2**64


@dataclass(frozen=True)
class Survey:
    """What one pass over a corpus finds.

    Attributes:
        documents: number of documents that are not empty.
        bytes: UTF-8 bytes of all texts.
        digest: fingerprint of all texts in order.
        smallest_hash, largest_hash: extremes of `document_hash` over the documents.
        of_kind: how many documents are from files of each kind.
    """

    documents: int
    bytes: int
    digest: str
    smallest_hash: int
    largest_hash: int
    of_kind: Mapping[str, int]


def document_hash(document: Document) -> int:
    """Uniform in [0, 2^64), from the text alone."""
    return int.from_bytes(document.digest[:8], "little")


def survey(
    documents: Iterable[Document], left_out: Tally | None = None, names: Sequence[str] = ()
) -> Survey:
    """Read every document once.

    Args:
        documents: of the corpus.
        left_out: what is left out meanwhile, which may explain why there are none.
        names: of the corpus, one of several that a run reads.

    Raises:
        UserError: there is none.
    """
    hasher = hashlib.blake2b(digest_size=16)
    count = size = largest = 0
    smallest = _HASHES
    of_kind: Counter[str] = Counter()
    for document in documents:
        of_kind[document.kind] += 1
        count += 1
        size += len(document.text.encode())
        hasher.update(document.digest)
        smallest = min(smallest, document_hash(document))
        largest = max(largest, document_hash(document))
    if not count:
        why = f" ({left_out})" if left_out and left_out.all() else ""
        of = f"the files of {', '.join(names)}" if names else "its files"
        raise UserError(f"the corpus is empty: none of {of} holds a document{why}.")
    return Survey(count, size, hasher.hexdigest(), smallest, largest, of_kind)


def refuse_share(held_out: float) -> None:
    """Raise UserError if a share of documents cannot be held out."""
    if not 0 <= held_out < 1:
        raise UserError(f"held_out is {held_out}: give a fraction of the documents in [0, 1).")


def held_out_below(found: Survey, fraction: float) -> int:
    """The bound such that the documents with `document_hash` below it are held out.

    About `fraction` of the documents; where a fraction above 0 of a small corpus would leave
    either side empty, the one document nearest to the bound changes sides.

    Raises:
        UserError: a fraction outside [0, 1), or fewer than two different documents to part.
    """
    refuse_share(fraction)
    if fraction == 0:
        return 0
    if found.smallest_hash == found.largest_hash:
        raise UserError(
            "the corpus is one single document, so none can be held out: split it into several "
            "files, or set held_out to 0."
        )
    return min(max(round(fraction * _HASHES), found.smallest_hash + 1), found.largest_hash)
