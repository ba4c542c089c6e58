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
        report(0, 24 * 10**9)
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


def test_what_was_done_before_has_no_rate(clock, monkeypatch, capsys):
    """8 of 32 GB were kept, and are read back for a minute; the next 4 GB take 40 s."""
    monkeypatch.setattr(Console, "is_terminal", False)
    with progress.bytes_done("import") as report:
        for seconds, done in ((0, 8), (60, 8), (40, 12)):
            clock[0] += seconds
            report(done * 10**9, 32 * 10**9)
    assert capsys.readouterr().err.splitlines() == [
        "import: 8.0 GB of 32.0 GB were done before, and are read back",
        "import: 12.0 GB of 32.0 GB, 100.0 MB/s, 3m20s left",
    ]


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


def test_processes_of_a_rehearsal_are_counted_in_a_log(clock, monkeypatch, capsys):
    monkeypatch.setattr(Console, "is_terminal", False)
    with progress.children_done(4) as done:
        said = [capsys.readouterr()]
        for seconds in (6, 1, 50, 1):  # not again so soon; but the last one always
            clock[0] += seconds
            done()
            said.append(capsys.readouterr())
    assert [one.err for one in said] == [
        "rehearsing, in 4 processes: minutes, as a rule\n",
        "rehearsing: 1 of 4 have ended, 6s\n",
        "",
        "rehearsing: 3 of 4 have ended, 57s\n",
        "rehearsing: 4 of 4 have ended, 58s\n",
    ]
    assert not any(one.out for one in said)
    with progress.children_done(1) as done:
        done()
    assert capsys.readouterr() == ("", "")


def test_phases_have_lines_in_a_log(clock, monkeypatch, capsys):
    monkeypatch.setattr(Console, "is_terminal", False)
    with progress.phases() as show:
        for seconds, *said in ((1, "Reading", 5, None), (5, "Reading", 9000, None),
                               (2, "Encoding", 1, 9000), (30, "Encoding", 4000, 9000)):  # fmt: skip
            clock[0] += seconds
            show(*said)
    assert capsys.readouterr() == ("", "Reading: 9,000\nEncoding: 4,000 of 9,000\n")
