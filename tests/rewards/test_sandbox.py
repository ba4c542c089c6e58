"""Programs that try to break out, and what is made of those that pass."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.rewards import sandbox
from dsv3_plugin.rewards.code import passes
from dsv3_plugin.rewards.sandbox import Limits, Ran, ran
from dsv3_plugin.rewards.verdict import Attempt

PATIENT = Limits(seconds=300.0)
"""On a machine that has much to do."""


def patient(program: str, given: str = "") -> Ran:
    return ran(program, given, PATIENT)


def _lacks_walls() -> str:
    try:
        return "" if patient("").passed else "programs do not run in bubblewrap here"
    except UserError as error:
        return str(error)


pytestmark = pytest.mark.skipif(bool(lacking := _lacks_walls()), reason=lacking)


def test_a_program_is_given_its_input_and_its_output_is_read() -> None:
    done = patient("print(int(input()) + 1)", "41\n")
    assert (done.passed, done.output, done.problem) == (True, "42\n", "")


def test_an_environment_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(sys.prefix)
    python = tmp_path / "link" / "bin" / "python"
    code = (
        "import sys; from dsv3_plugin.rewards.sandbox import Limits, ran\n"
        "print(sys.prefix, ran('print(1)', '', Limits(seconds=300.0)).passed)"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{tmp_path / 'link'} True\n", done.stderr


def test_no_file_of_ours_is_seen(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    for path in (secret, "/etc/passwd", "/proc/1/root/etc/passwd", __file__):
        done = patient(f"import os; assert os.path.exists({str(path)!r})")
        assert not done.passed, path


def test_nothing_is_written_outside_and_nothing_stays() -> None:
    for path in ("/usr/here", f"{os.__file__}.here", "/here/there", "/here", "/dev/here"):
        assert not patient(f"open({path!r}, 'w')").passed
    assert patient("open('/tmp/here', 'w').write('x')").passed
    assert not patient("open('/tmp/here')").passed
    assert not Path("/tmp/here").exists()


def test_nobody_is_reached_by_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
        assert "refused" in patient(program).problem.lower()


def test_no_other_process_is_seen_or_ended() -> None:
    mine = os.getpid()
    done = patient("import os; print(len([p for p in os.listdir('/proc') if p.isdigit()]))")
    assert int(done.output) <= 2
    patient(
        "import os, signal\nfor p in range(2, 70000):\n try: os.kill(p, 9)\n except OSError: pass"
    )
    os.kill(mine, 0)


def test_no_secret_of_the_environment_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "s3cret")
    assert "s3cret" not in patient("import os; print(dict(os.environ))").output


def test_nobody_is_root_and_no_walls_are_made_inside() -> None:
    assert patient("import os; assert os.getuid() == 65534").passed
    assert not patient("import os; os.unshare(os.CLONE_NEWUSER)").passed


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("x = bytearray(2**30)", "MemoryError"),
        ("while True: print('x' * 10000)", "File too large"),
        ("import os; os._exit(0)", "it left early"),
        ("raise SystemExit(0)", "it left early"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("this is no Python", "SyntaxError: invalid syntax"),
        ("\0", "null bytes"),
        ("x = '\ud800'", "SyntaxError"),
        ("import sys; sys.stderr.write('bwrap: no'); sys.exit(1)", "bwrap: no"),
    ],
)
def test_what_does_not_come_to_its_end_says_why(program: str, says: str) -> None:
    done = ran(program, limits=replace(PATIENT, output=2**16))
    assert not done.passed
    assert says in done.problem


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(600)"])
def test_what_has_no_end_is_ended(program: str) -> None:
    done = ran(program, limits=Limits(seconds=2.0))
    assert (done.passed, done.problem) == (False, "took more than 2 s")


def test_processes_are_counted() -> None:
    done = patient("import os\nfor _ in range(100): os.fork() or __import__('time').sleep(9)")
    assert "Resource temporarily unavailable" in done.problem


def test_what_a_program_has_started_ends_with_it() -> None:
    assert patient("import os, time\nfor _ in range(5): os.fork() or time.sleep(1000.125)").passed
    assert not [line for line in _command_lines() if b"1000.125" in line]


def _command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            yield path.read_bytes()


def test_a_long_program_with_much_to_read_is_run() -> None:
    program = f"x = {'7' * 200_000!r}\nprint(len(x) + len(input()))"
    assert patient(program, "1" * 300_000).output == "500000\n"


@pytest.mark.parametrize("wrong", ["prlimit", "python", "nothing begins"])
def test_what_is_wrong_with_the_walls_is_no_fault_of_a_program(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error, and not a 0."""
    limits = PATIENT
    match wrong:
        case "prlimit":
            monkeypatch.setattr(sandbox, "_limited", lambda limits: ["no-prlimit"])
        case "python":
            monkeypatch.setattr(sandbox, "_RUN", "import nothing_of_that_name")
        case "nothing begins":
            limits = Limits(seconds=1.0)
            monkeypatch.setattr(sandbox, "_TO_BEGIN_S", 1.0)
            monkeypatch.setattr(sandbox, "_RUN", "import time; time.sleep(600)")
    with pytest.raises(UserError, match=r"Code cannot be run here: .*leave the reward 'code' out"):
        ran("print(1)", limits=limits)
    with pytest.raises(UserError):
        passes(Attempt("", GOOD, "assert True"), limits)
    if wrong != "nothing begins":
        with pytest.raises(UserError):
            sandbox.check()


def test_without_bubblewrap_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt-get install bubblewrap"):
        ran("")


GOOD = "So:\n```python\ndef double(x):\n    return 2 * x\n```\nThat is it."


@pytest.mark.parametrize(
    ("text", "expected", "value"),
    [
        (GOOD, "assert double(2) == 4", 1),
        (GOOD, "assert double(2) == 5", 0),
        ("def double(x): return 2 * x", "assert double(2) == 4", 0),
        ("```python\nimport os; os._exit(0)\n```", "assert double(2) == 4", 0),
        ("```\nprint(int(input()) * 2)\n```", {"inputs": ["2", "3"], "outputs": ["4", "6 \n"]}, 1),
        ("```\nprint(int(input()) * 2)\n```", {"inputs": ["2", "3"], "outputs": ["4", "7"]}, 0),
        ("```js\nlet a = 1\n```\ntext\n" + GOOD, "assert double(2) == 4", 1),
        (GOOD + "\n```python\ndef double(x):", "assert double(2) == 4", 1),
    ],
)
def test_a_program_passes_all_its_tests_or_none(text: str, expected: object, value: int) -> None:
    assert passes(Attempt("", text, expected), PATIENT, seconds=300.0) == value


def test_without_tests_nothing_is_wrong() -> None:
    with pytest.raises(ValueError, match="no tests"):
        passes(Attempt("", GOOD))
