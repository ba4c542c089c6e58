"""Which starts of a job are allowed, what it does after each, and how they are remembered."""

import pytest

from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch.starts import (
    NOT_STARTED,
    Start,
    next_action,
    refusal,
    remember_end,
    remember_start,
    starts_of,
)


def starts(*steps: int, ended="failed") -> list[Start]:
    return [Start("7", float(n), step, ended) for n, step in enumerate(steps)]


def test_failures_are_counted_against_the_budget():
    assert refusal(starts(0, 4), step=8, restarts=2) is None
    assert refusal(starts(0, 4, 8), step=12, restarts=3) is None
    sentence = refusal(starts(0, 4, 8), step=12, restarts=2)
    assert "failed 3 times" in sentence
    assert "launch.restarts of the cluster's file is 2" in sentence


def test_a_start_that_left_no_word_was_a_failure():
    assert refusal(starts(0, ended=None), step=4, restarts=0)


@pytest.mark.parametrize("ended", ["time limit", "stopped"])
def test_the_end_of_the_time_and_a_preemption_cost_nothing(ended):
    assert refusal(starts(*range(0, 400, 4), ended=ended), step=400, restarts=0) is None


@pytest.mark.parametrize("ended", ["time limit", "failed", None])
def test_no_progress_between_two_restarts_ends_it_whatever_the_budget(ended):
    assert refusal(starts(4, ended=ended), step=4, restarts=100) is None  # the first restart
    sentence = refusal(starts(0, 4, ended=ended), step=4, restarts=100)
    assert "no progress between two restarts" in sentence
    assert "step 4" in sentence
    assert "still none" in refusal(starts(0, 0, ended=ended), step=0, restarts=100)
    assert refusal(starts(4, 4, ended=ended), step=8, restarts=100) is None


def after(code: int, **otherwise) -> tuple[str, str]:
    usual = {
        "done": False, "wanted": True, "time_is_up": False, "by_slurm": False, "moved": True,
    }  # fmt: skip
    return next_action(code, **{**usual, **otherwise})


def test_what_a_job_does_after_a_start():
    assert after(0, done=True) == ("done", "done")
    assert after(0, time_is_up=True) == ("time limit", "requeue")
    assert after(0) == ("stopped", "requeue")  # saved: a preemption that gives time for it
    assert after(0, wanted=False) == ("stopped", "stop")
    assert after(1) == ("failed", "again")
    assert after(137, time_is_up=True) == ("failed", "requeue")
    assert after(2, moved=False) == ("refused", "stop")
    assert after(2) == ("failed", "again")  # a lost rank, say
    assert after(75, moved=False) == ("failed", "again")
    assert after(NOT_STARTED, moved=False) == ("failed", "requeue")
    assert after(NOT_STARTED, wanted=False) == ("stopped", "stop")
    assert after(0, by_slurm=True) == ("stopped", "stop")
    assert after(143, by_slurm=True) == ("failed", "stop")


def test_a_cancelled_run_does_not_begin_again_however_it_ended():
    assert after(1, wanted=False) == ("stopped", "stop")


def test_starts_and_ends_are_remembered_by_job(tmp_path):
    run = RunFolder(tmp_path)
    assert starts_of(run) == []
    remember_start(run, "3", 0)
    remember_end(run, "3", "time limit", "the time is up")
    remember_start(run, "3", 8)
    remember_start(run, "5_1", 8)
    with (run.launch / "starts.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"time": 1, "job": "5_1", "en')  # as a kill cuts it short
    remember_start(run, "5_1", 12)  # the next line is whole all the same
    first, second = starts_of(run, "3")
    assert (first.step, first.ended, first.why) == (0, "time limit", "the time is up")
    assert (second.step, second.ended) == (8, None)
    assert [start.job for start in starts_of(run)] == ["3", "3", "5_1", "5_1"]


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe{", b"[" * 200_000, b"7", b"[]", b"{}", b'{"job": "7", "time": 1}',
     b'{"job": 7, "time": 1, "step": 1}', b'{"job": "7", "time": "now", "step": 1}',
     b'{"job": "7", "time": 1, "step": "1"}', b'{"job": "7", "ended": "failed"}',
     b'{"job": "7", "ended": "eaten", "why": ""}', b'{"job": "7", "ended": [], "why": ""}'],
)  # fmt: skip
def test_a_damaged_line_costs_no_other(tmp_path, line):
    run = RunFolder(tmp_path)
    remember_start(run, "7", 4)
    with (run.launch / "starts.jsonl").open("ab") as file:
        file.write(line + b"\n")
    remember_end(run, "7", "stopped", "saved")
    (start,) = starts_of(run, "7")
    assert (start.step, start.ended, start.why) == (4, "stopped", "saved")
