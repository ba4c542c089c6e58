"""Children of a rehearsal on the CPU host: forked, so that they cost no imports."""

import os
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from dsv3_plugin.rehearsal.report import RankReport, Request
from tests.forked import forked


def reports(requests: Sequence[Request]) -> list[RankReport]:
    """What the children found, one after the other."""
    return [_report(request) for request in requests]


def _report(request: Request) -> RankReport:
    context = forked()
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(request, writer), daemon=True)
    process.start()
    writer.close()
    try:
        return reader.recv()
    finally:
        process.join()


def _child(request: Request, writer: Connection) -> None:
    from dsv3_plugin.rehearsal.child import answered

    log = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    with tempfile.TemporaryDirectory() as scratch:
        writer.send(answered(request, Path(scratch)))
    os._exit(0)
