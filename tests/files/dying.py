"""Work in processes that die before each step they would take on the disk, one after the other."""

import itertools
import os
from collections.abc import Callable, Iterator

STEPS = ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir")
_DIED = 9


def deaths(work: Callable[[], None]) -> Iterator[int]:
    """Yields after each death: before the first step, the second, …, until the work is done.

    Each process begins with what the one before left behind.
    """
    for step in itertools.count():
        child = os.fork()
        if child == 0:
            _die_at(step)
            try:
                work()
            except BaseException:
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, _DIED)
        if code == 0:
            assert step > 2, "no steps were counted"
            return
        yield step


def _die_at(step: int) -> None:
    steps = itertools.count()

    def counted(function):
        def call(*args, **kwargs):
            if next(steps) == step:
                os._exit(_DIED)
            return function(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
