"""Prompts whose latents are in the cache, so that the next that begins alike need not compute them.

A latent depends on its token and those before it, so a page is known by all tokens from the
beginning of its text to its own end. Known pages are held until somebody needs their memory, the
one that was longest of no use first; or until the weights change, for then they mean nothing.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dsv3_plugin.inference.pages import PAGE_TOKENS, Pages


@dataclass(frozen=True)
class Known:
    """The beginning of a text that the cache has.

    Attributes:
        pages: full ones, to be read by many.
        partial: a page of which the first `rest` tokens are meant; whoever goes on from there
            writes behind them, and needs a copy.
        rest: how many.
    """

    pages: tuple[int, ...] = ()
    partial: int | None = None
    rest: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens it covers."""
        return len(self.pages) * PAGE_TOKENS + self.rest


class Prefixes:
    """Known pages by their texts, least recently useful first."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._page_of: dict[bytes, int] = {}
        self._texts_of: dict[int, set[bytes]] = defaultdict(set)

    def __len__(self) -> int:
        """How many pages are known."""
        return len(self._texts_of)

    def find(self, tokens: Sequence[int]) -> Known:
        """The longest known beginning of a text, its last token aside: that one has to be computed,
        since what follows is asked of it."""
        usable, found, used = len(tokens) - 1, [], []
        for end, text in _texts(tokens):
            page = self._page_of.get(text) if end <= usable else None
            if page is None:
                break
            used.append(text)
            found.append(page)
        full = usable // PAGE_TOKENS
        if not found or len(found) <= full or usable % PAGE_TOKENS == 0:
            known = Known(tuple(found[:full]))
        else:
            known = Known(tuple(found[:full]), found[full], usable % PAGE_TOKENS)
        self._touch(used)
        return known

    def add(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Remember the pages of a text that is in the cache: full ones, and the last one as far as
        it goes before the last token, where an equal text goes on from (see `find`)."""
        used = []
        for end, text in _texts(tokens):
            page = pages[(end - 1) // PAGE_TOKENS]
            if text not in self._page_of:
                if page not in self._texts_of:
                    self._pages.share([page])
                self._page_of[text] = page
                self._texts_of[page].add(text)
            used.append(text)
        self._touch(used)

    def give_up(self) -> bool:
        """Free the page that was longest of no use and that nobody else holds, if there is one."""
        for page in self._page_of.values():
            if self._pages.holders(page) == 1:
                for text in self._texts_of.pop(page):
                    del self._page_of[text]
                self._pages.release([page])
                return True
        return False

    def clear(self) -> None:
        """Forget all."""
        self._pages.release(self._texts_of)
        self._page_of.clear()
        self._texts_of.clear()

    def _touch(self, texts: list[bytes]) -> None:
        # A page is found by way of those before it, so it is given up before them.
        for text in reversed(texts):
            self._page_of[text] = self._page_of.pop(text)


def _texts(tokens: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """The beginnings of a text by which its pages are known, each as its length and a digest: those
    that end with a page, and the one that ends before the last token."""
    ids = np.asarray(tokens, dtype=np.int64)
    seen = hashlib.blake2b(digest_size=32)
    usable = len(ids) - 1
    for start in range(0, len(ids), PAGE_TOKENS):
        end = start + PAGE_TOKENS
        if start < usable < end:
            begun = seen.copy()
            begun.update(ids[start:usable].tobytes())
            yield usable, begun.digest()
        if end <= len(ids):
            seen.update(ids[start:end].tobytes())
            yield end, seen.digest()
