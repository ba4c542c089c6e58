"""Who was lost, by what NCCL's watchdog leaves in logs; no NCCL is needed to write that."""

import signal
import subprocess
import sys
import textwrap

import pytest

from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch.logs import start_line
from dsv3_plugin.launch.nccl_watchdog import Timeout, after, lost, timeout_in


def written(rank: int, at: str, number: int, enqueued: int, group: str = "0(default_pg)") -> str:
    """The watchdog's lines, in the form of torch 2.8 and later."""
    return (
        f"[rank{rank}]:[E1126 {at} ProcessGroupNCCL.cpp:632] [Rank {rank}] Watchdog caught "
        f"collective operation timeout: WorkNCCL(SeqNum={number}, OpType=ALLREDUCE, NumelIn=1, "
        f"NumelOut=1, Timeout(ms)=600000) ran for 600012 milliseconds before timing out.\n"
        f"[rank{rank}]:[E1126 {at} ProcessGroupNCCL.cpp:2268] [PG ID 0 PG GUID {group} Rank {rank}]"
        f"  failure detected by watchdog at work sequence id: {number} PG status: last enqueued "
        f"work: {enqueued}, last completed work: {number - 1}\n"
        f"[rank{rank}]:[E1126 {at} ProcessGroupNCCL.cpp:685] [Rank {rank}] To avoid data "
        f"inconsistency, we are taking the entire process down.\n"
    )


def test_the_watchdogs_lines_of_the_last_start_are_read(tmp_path):
    log = tmp_path / "rank1.log"
    assert timeout_in(log) is None
    log.write_bytes(start_line() + written(1, "06:42:07.123", 5, 7).encode())
    assert timeout_in(log) == Timeout("1126 06:42:07.123", "ALLREDUCE", 5, "0(default_pg)", 7)
    # Torch 2.6 wrote the second line so.
    status = "[PG ID 2 PG GUID 3(TP) Rank 1] Exception (either an error or timeout) detected by"
    older = written(1, "06:42:08.000", 9, 9).splitlines()[0] + (
        f"\n{status} watchdog at work: 9, last enqueued NCCL work: 11, last completed NCCL work: "
        "8.\n"
    )
    with log.open("ab") as file:
        file.write(start_line() + b"\xff not text\n" + older.encode())
    assert timeout_in(log) == Timeout("1126 06:42:08.000", "ALLREDUCE", 9, "3(TP)", 11)
    with log.open("ab") as file:
        file.write(start_line() + b"loading\n")
    assert timeout_in(log) is None


def timeout(at: str, number: int = 5, enqueued: int = 7, group: str = "0") -> Timeout:
    return Timeout(at, "ALLREDUCE", number, group, enqueued)


@pytest.mark.parametrize(
    ("ranks", "found", "sentence"),
    [
        ({0: timeout("1"), 1: None, 2: timeout("2")}, [1], "gave no sign, for which rank 0 waited"),
        ({0: timeout("3"), 1: timeout("1"), 2: timeout("2")}, [1], "ended it first of all"),
        # Rank 2 was still on its way to the collective that the others waited in.
        ({0: timeout("3"), 1: timeout("1"), 2: timeout("2", 4, 4)}, [2], "did not come to"),
        # Numbers of different groups say nothing of each other.
        ({0: timeout("1"), 1: timeout("2", 1, 1, "9")}, [0], "ended it first of all"),
    ],
    ids=["silent", "first", "behind", "another group"],
)
def test_who_was_lost(ranks, found, sentence):
    answer = lost(ranks)
    assert answer.ranks == found
    assert sentence in answer.sentence
    assert "ALLREDUCE number 5 of group 0" in answer.sentence


def test_nobody_was_lost_where_the_watchdog_ended_nobody():
    assert lost({0: None, 1: None}) is None


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run of three ranks under a launcher, two of which the watchdog has ended."""
    folder = RunFolder(tmp_path / "run")
    folder.logs.mkdir(parents=True)
    for rank, text in enumerate(["", "stuck", written(2, "06:42:09.0", 5, 5)]):
        (folder.logs / f"rank{rank}.log").write_bytes(start_line() + text.encode())
    folder.metrics.append({"iteration": 12})
    return folder


def rank_zero(run: RunFolder, end: str) -> subprocess.CompletedProcess[str]:
    """Rank 0 with its witness, which ends as these lines do."""
    code = f"""
        import os, sys
        from pathlib import Path
        from dsv3_plugin.files.run_folder import RunFolder
        from dsv3_plugin.launch import witness
        witness.WATCHDOGS_SECONDS = 0
        run = RunFolder(Path({str(run.root)!r}))
        with witness.witnessed(run, 3, sys.stderr):
    """
    program = textwrap.dedent(code) + textwrap.indent(textwrap.dedent(end), "    ")
    # The witness holds the pipe of standard error until it has spoken.
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )


def test_a_rank_that_is_ended_by_the_watchdog_has_a_witness(run):
    text = written(0, "06:42:08.0", 5, 5)
    ended = rank_zero(run, f"""
        Path({str(run.logs / "rank0.log")!r}).open("a").write({text!r})
        os.abort()
    """)  # fmt: skip
    assert ended.returncode == -signal.SIGABRT
    assert ended.stderr == (
        "dsv3: rank 1 gave no sign, for which rank 0 waited in ALLREDUCE number 5 of group "
        "0(default_pg) until NCCL's watchdog ended it, after step 12: see "
        f"{run.logs}/rank1.log; the same command begins anew, since nothing was saved.\n"
    )
    assert "the same command goes on from the last checkpoint." in after(
        "rank 1 broke", 12, run.logs, saved=True
    )


def test_a_rank_that_says_why_it_ends_needs_no_witness(run):
    ended = rank_zero(run, "raise SystemExit(3)")
    assert (ended.returncode, ended.stderr) == (3, "")


def test_a_rank_zero_that_is_killed_is_missed(run):
    (run.logs / "rank2.log").write_bytes(start_line())
    ended = rank_zero(run, "os.kill(os.getpid(), 9)")
    assert ended.stderr.startswith("dsv3: rank 0 ended without a word after step 12: see ")
