"""What a conversion says on the way goes to stderr, with its rate and the time it still takes."""

import pytest
from rich.console import Console

from dsv3_plugin.cli import progress


@pytest.fixture
def clock(monkeypatch):
    """The time that progress is measured in."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_log_lines_have_the_rate_and_the_time_left(clock, monkeypatch, capsys):
    monkeypatch.setattr(Console, "is_terminal", False)
    with progress.bytes_done("import") as report:
        clock[0] += 4
        report(10**9, 24 * 10**9)  # too early for a line
        assert capsys.readouterr() == ("", "")
        clock[0] += 36
        report(8 * 10**9, 32 * 10**9)
        said = capsys.readouterr()
        # 8 GB in 40 s are 200 MB/s; the other 24 GB take 120 s.
        assert said.err == "import: 8.0 GB of 32.0 GB, 200.0 MB/s, 2m00s left\n"
        assert said.out == ""
        clock[0] += 29
        report(20 * 10**9, 32 * 10**9)  # not again so soon
        assert capsys.readouterr() == ("", "")


def test_nothing_done_has_no_rate(clock, monkeypatch, capsys):
    monkeypatch.setattr(Console, "is_terminal", False)
    with progress.bytes_done("export") as report:
        clock[0] += 60
        report(0, 10)
    assert capsys.readouterr() == ("", "")


def test_the_bar_goes_to_stderr(monkeypatch, capsys):
    monkeypatch.setattr(Console, "is_terminal", True)
    with progress.bytes_done("verify") as report:
        report(3 * 10**9, 4 * 10**9)
    said = capsys.readouterr()
    assert "verify" in said.err
    assert "3.0/4.0 GB" in said.err
    assert said.out == ""
