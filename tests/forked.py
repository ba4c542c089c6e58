"""Processes forked from one server, which has imported torch, megatron and transformers already.

multiprocessing keeps one server for a process, started by whoever needs it first, so what it
imports beforehand is said here for all. Where such an import fails it keeps silent, and every
process pays for it: tests/test_forked.py looks.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

IMPORTED = ["tests.gloo_ranks", "tests.imported"]
"""The second imports all that is slow; the first is what begins a rank."""


def forked() -> ForkServerContext:
    """What makes such processes, and their pipes; the server runs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    # The server does not take over sys.path before it imports.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def answer_of(target: Callable[..., None], *arguments: Any) -> Any:
    """What a function sends, called in such a process with a connection behind its arguments."""
    context = forked()
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, writer), daemon=True)
    process.start()
    writer.close()
    try:
        return reader.recv()
    finally:
        process.join()
