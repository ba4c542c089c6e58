"""Children of a rehearsal on the CPU host: forked, so that they cost no imports."""

import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dsv3_plugin.rehearsal import children, quick, rehearsal
from dsv3_plugin.rehearsal.children import Devices, broken_off
from dsv3_plugin.rehearsal.report import RankReport, Request
from dsv3_plugin.upstream import cpu_host
from tests.forked import answer_of
from tests.rehearsal import faults


def reports(requests: Sequence[Request], fault: str | None = None) -> list[RankReport]:
    """What the children found, one after the other.

    Args:
        requests: each has a child.
        fault: a function of `faults`, called in each before it begins.
    """
    return [answer_of(_child, request, fault, os.getcwd()) for request in requests]


def fork_those_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever rehearses on the CPU host in this process has such children."""
    for module in (quick, rehearsal):
        monkeypatch.setattr(module, "rehearsed", _rehearsed)


def _rehearsed(
    requests: Sequence[Request],
    devices: Devices,
    done: Callable[[], None] = lambda: None,
    within_s: float | None = None,
) -> list[RankReport]:
    """Stands for `children.rehearsed`."""
    if devices.kind != "the CPU host":
        return children.rehearsed(requests, devices, done, within_s)
    found = []
    for request in requests:
        found += reports([request])
        done()
    return found


def _child(request: Request, fault: str | None, folder: str, writer: Connection) -> None:
    from dsv3_plugin.rehearsal.child import answered

    os.chdir(folder)

    log = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    if fault is not None:
        cpu_host.enable()
        getattr(faults, fault)()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            report = answered(request, Path(scratch))
        except Exception:
            report = broken_off(request, 1, traceback.format_exc())
        writer.send(report)
    os._exit(0)
