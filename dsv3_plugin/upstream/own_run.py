"""Whether a run of ours trains in this process.

What a replaced symbol does for our runs alone, it asks here; everybody else gets upstream's.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_training: ContextVar[bool] = ContextVar("own_run", default=False)


@contextlib.contextmanager
def training() -> Iterator[None]:
    """A run of ours trains, while the block lasts."""
    token = _training.set(True)
    try:
        yield
    finally:
        _training.reset(token)


def is_training() -> bool:
    """Whether one does now."""
    return _training.get()
