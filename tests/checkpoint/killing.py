"""Conversions in processes that die: at a chosen moment, or at a chosen step.

The processes are forked (`tests.forked`), so a death costs no import. A step
is anything that changes the disk: a write, a sync, a rename, a removal. Steps are counted with one
worker and without the clock, so that every run of a conversion takes the same ones.
"""

import itertools
import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from dsv3_plugin.checkpoint.conversion import journal
from dsv3_plugin.checkpoint.conversion.convert import export_hf, import_hf
from tests.forked import forked

DIRECTIONS = {"import": import_hf, "export": export_hf}


def start(direction: str, source: Path, target: Path, **options) -> BaseProcess:
    """A conversion in a process of its own, which notes its progress after every tensor."""
    process = forked().Process(target=_convert, args=(direction, source, target, options))
    process.start()
    return process


def kill_after(process: BaseProcess, seconds: float) -> bool:
    """kill -9 after so many seconds; whether that is what it died of."""
    time.sleep(seconds)
    process.kill()
    process.join(60)
    return process.exitcode == -signal.SIGKILL


def steps_of(direction: str, source: Path, target: Path, **options) -> int:
    """How many steps a conversion takes."""
    reader, writer = forked().Pipe(duplex=False)
    arguments = (direction, source, target, {**options, "workers": 1}, None, writer)
    process = forked().Process(target=_convert, args=arguments)
    process.start()
    writer.close()
    process.join(120)
    return reader.recv()


def die_at(step: int, direction: str, source: Path, target: Path, **options) -> int:
    """Runs a conversion whose process is gone the moment it would take that step; its exit code."""
    arguments = (direction, source, target, {**options, "workers": 1}, step, None)
    process = forked().Process(target=_convert, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def _convert(direction, source, target, options, die=None, answer=None):
    journal._COMMIT_BYTES = 100_000
    journal._COMMIT_SECONDS = float("inf")
    steps = itertools.count()  # the worker and the main thread both take steps

    def counted(function):
        def call(*args, **kwargs):
            if next(steps) == die:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    if die is not None or answer is not None:
        for name in ("pwrite", "fsync", "replace", "rename", "unlink", "mkdir", "ftruncate"):
            setattr(os, name, counted(getattr(os, name)))
    DIRECTIONS[direction](source, target, **options)
    if answer is not None:
        answer.send(next(steps))
