"""Pages of a cache: who has which, and how many there are. Numbers alone; the memory they stand for
is in cache.py."""

from collections import Counter
from collections.abc import Iterable

PAGE_TOKENS = 64
"""Tokens of a page, as FlashMLA's kernel reads them (its `block_size`); a sequence leaves half of
its last page empty on average."""


def pages_for(tokens: int) -> int:
    """Pages that so many tokens take."""
    return -(-tokens // PAGE_TOKENS)


class Pages:
    """Free pages, and how many hold each of the others."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._holders: Counter[int] = Counter()
        self._fresh: list[int] = []

    @property
    def free(self) -> int:
        """How many nobody holds."""
        return len(self._free)

    @property
    def used(self) -> int:
        """How many somebody holds."""
        return self.count - len(self._free)

    def holders(self, page: int) -> int:
        """How many hold a page."""
        return self._holders[page]

    def take(self) -> int:
        """A free page, held once.

        Raises:
            IndexError: there is none.
        """
        page = self._free.pop()
        self._holders[page] = 1
        self._fresh.append(page)
        return page

    def fresh(self) -> list[int]:
        """Those that were taken since this was asked the last time."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def share(self, pages: Iterable[int]) -> None:
        """One more holds each of these pages."""
        for page in pages:
            if not self._holders[page]:
                raise ValueError(f"page {page} is free and cannot be shared")
            self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One fewer holds each of these pages; what nobody holds is free."""
        for page in pages:
            if not self._holders[page]:
                raise ValueError(f"page {page} is free already")
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
                self._free.append(page)
