"""Children of a rehearsal: none outlives it, and one that is ended says by what."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from dsv3_plugin.rehearsal import children
from dsv3_plugin.rehearsal.children import Devices, _why_it_ended, rehearsed
from dsv3_plugin.rehearsal.report import Request

REQUEST = Request("pretrain/tiny", (), "cpu", 3, 1)
DEVICES = Devices({}, "the CPU host")


def _child_is(monkeypatch: pytest.MonkeyPatch, program: str) -> list[subprocess.Popen[str]]:
    """Let a child be another program, which reads its request first; all that begin."""
    start = children.subprocess.Popen
    begun = []

    def popen(command: list[str], **options: Any) -> subprocess.Popen[str]:
        program_of_child = f"import sys; sys.stdin.read()\n{program}"
        begun.append(start([sys.executable, "-c", program_of_child], **options))
        return begun[-1]

    monkeypatch.setattr(children.subprocess, "Popen", popen)
    return begun


def test_a_child_that_is_killed_says_by_what(monkeypatch: pytest.MonkeyPatch) -> None:
    _child_is(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    (report,) = rehearsed([REQUEST], DEVICES)
    (finding,) = report.findings
    assert finding.sentence == "rank 3 was ended by SIGKILL"
    assert finding.stops
    assert not finding.of_run
    assert report.broke_off


def test_a_child_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    _child_is(monkeypatch, "import time; time.sleep(600)")
    (report,) = rehearsed([REQUEST], DEVICES, within_s=0.5)
    assert report.broke_off
    assert report.findings[0].sentence == "rank 3 came to no end within 0.5 s"


def test_an_interrupted_rehearsal_leaves_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = _child_is(monkeypatch, "import time; time.sleep(600)")
    main = threading.main_thread().ident
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background

    def interrupt() -> None:
        while not begun:
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)

    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            rehearsed([REQUEST] * 8, DEVICES)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(begun) <= len(os.sched_getaffinity(0))  # and none is begun afterwards
    # Killed, and waited for: none is left, nor any that nobody knows the end of.
    assert [child.wait(60) for child in begun] == [-signal.SIGKILL] * len(begun)


TOLD = """Traceback (most recent call last):
  File "rank.py", line 1, in <module>
ValueError: an error that was handled
During handling of the above exception, another exception occurred:
"""


@pytest.mark.parametrize(
    ("log", "sentence", "whole"),
    [
        ("nothing that anybody would know", "no word of why", ""),
        (f"{TOLD}AssertionError\n[W1126] torch goes on", "AssertionError", "AssertionError"),
        (
            f"{TOLD}[rank3]: torch.OutOfMemoryError: no room\n[rank3]: at all.\n[W1126] it ends",
            "torch.OutOfMemoryError: no room at all",
            "torch.OutOfMemoryError: no room\nat all.",
        ),
        (
            f"{TOLD}RuntimeError: shapes differ. {'They are told of here. ' * 20}\n  [1, 2] and 3",
            "RuntimeError: shapes differ",
            f"RuntimeError: shapes differ. {'They are told of here. ' * 20}\n  [1, 2] and 3",
        ),
    ],
)  # fmt: skip
def test_a_child_that_breaks_says_why_in_a_sentence(log: str, sentence: str, whole: str) -> None:
    finding = _why_it_ended(3, 1, log)
    assert finding.sentence == f"rank 3 ends with {sentence}"
    assert finding.whole == whole
