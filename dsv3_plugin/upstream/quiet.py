"""Warnings of libraries about how other libraries call them, which no caller of ours can mend."""

import contextlib
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def without_warnings(*beginnings: str) -> Iterator[None]:
    """A block in which warnings that begin so are not shown, unless Python was told to (-W).

    Args:
        beginnings: regular expressions of what they say.
    """
    with warnings.catch_warnings():
        for beginning in () if sys.warnoptions else beginnings:
            warnings.filterwarnings("ignore", beginning)
        yield
