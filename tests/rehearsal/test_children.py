"""Children of a rehearsal: none outlives it, and one that is ended says by what."""

import signal
import sys
import threading

import pytest

from dsv3_plugin.rehearsal import children
from dsv3_plugin.rehearsal.children import Devices, rehearsed
from dsv3_plugin.rehearsal.report import Request

REQUEST = Request("pretrain/tiny", (), "cpu", 3, 1)
DEVICES = Devices({}, "the CPU host")


def _child_is(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let a child be another program, which reads its request first."""
    start = children.subprocess.Popen

    def popen(command: list[str], **options: object) -> object:
        return start([sys.executable, "-c", f"import sys; sys.stdin.read()\n{program}"], **options)

    monkeypatch.setattr(children.subprocess, "Popen", popen)


def test_a_child_that_is_killed_says_by_what(monkeypatch: pytest.MonkeyPatch) -> None:
    _child_is(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    (report,) = rehearsed([REQUEST], DEVICES)
    (finding,) = report.findings
    assert finding.sentence == "rank 3 was ended by SIGKILL"
    assert finding.stops
    assert report.broke_off


def test_a_child_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    _child_is(monkeypatch, "import time; time.sleep(600)")
    (report,) = rehearsed([REQUEST], DEVICES, within_s=0.5)
    assert report.broke_off
    assert report.findings[0].sentence == "rank 3 came to no end within 0.5 s"


def test_an_interrupted_rehearsal_leaves_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    _child_is(monkeypatch, "import time; time.sleep(600)")
    main = threading.main_thread().ident
    threading.Timer(0.5, signal.pthread_kill, [main, signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        rehearsed([REQUEST] * 8, DEVICES)
