"""Which logs are shown, in which order, and from where on."""

import os

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import local_end, run_logs
from dsv3_plugin.launch.failing import failed_first
from dsv3_plugin.launch.job_record import JobRecord, write_record
from dsv3_plugin.launch.run_logs import START_MARK, follow, log_ends
from dsv3_plugin.launch.starts import remember_start

# Two starts of a job, as srun of Slurm 22.05 writes ends of tasks.
OUTPUT = f"""\
{START_MARK}tiny for the 1st time
srun: error: n1: task 0: Exited with exit code 1
{START_MARK}tiny for the 2nd time
srun: error: n2: tasks 2-3: Killed
srun: error: n1: tasks 0-1: Exited with exit code 2
srun: error: n[2-3]: tasks 2,7: Exited with exit code 2
"""


def test_ranks_are_named_in_the_order_in_which_srun_heard_of_them():
    assert failed_first(OUTPUT, START_MARK) == [2, 3, 0, 1, 7]
    assert failed_first("", START_MARK) == []


@pytest.mark.parametrize(
    ("ends", "ranks"),
    [
        # Those that waited were heard of first.
        (["n1: task 0: Exited with exit code 1", "n2: task 1: Killed"], [1, 0]),
        (["n1: task 0: Exited with exit code 2", "n2: task 1: Exited with exit code 1"], [1, 0]),
        (["n1: task 0: Aborted", "n2: task 1: Out Of Memory"], [1, 0]),
        # srun ended what was left.
        (
            [
                "n1: task 3: Exited with exit code 1",
                "Timed out waiting for job step to complete",
                "n2: task 1: Killed",
            ],
            [3, 1],
        ),
        (
            ["n1: task 5: Exited with exit code 2", "n2: tasks 3-4: Exited with exit code 2"],
            [5, 3, 4],
        ),
    ],
)
def test_a_rank_that_died_comes_before_those_that_waited_for_it(ends, ranks):
    said = "".join(f"srun: error: {end}\n" for end in ends)
    assert failed_first(f"{START_MARK}tiny\n{said}", START_MARK) == ranks


def test_what_stood_in_a_log_before_a_restart_is_of_the_start_before(tmp_path):
    run = run_with_logs(tmp_path, 2)
    output = run.launch / "job-7.out"
    write_record(run, JobRecord("7", "cpu", str(output), 0.0))
    output.write_text(f"{START_MARK}tiny in {run.root}: restart 1 ---\n")
    remember_start(run, "7", 0)
    os.utime(run.logs / "rank0.log", (1e9, 1e9))
    assert [end.title for end in log_ends(run)] == [
        "job 7", "rank 0 (of a start before)", "rank 1",
    ]  # fmt: skip
    said = followed(run, [lambda: (run.logs / "rank0.log").open("a").write("new\n"), lambda: None])
    assert said == [("rank 0", "new")]


def test_of_a_run_here_the_rank_that_its_end_names_comes_first(tmp_path):
    run = run_with_logs(tmp_path, 3)
    local_end.remember(run, "failed", f"rank 2 crashed after step 0: see {run.logs}/rank2.log; the")
    assert [end.title for end in log_ends(run)] == ["rank 2 (failed)", "rank 0", "rank 1"]


def run_with_logs(folder, ranks: int) -> RunFolder:
    run = RunFolder(folder)
    run.logs.mkdir()
    for rank in range(ranks):
        (run.logs / f"rank{rank}.log").write_text(
            f"\n--- 2026-11-26 10:00:00 ---\nbefore\n--- 2026-11-26 11:00:00 ---\nI am {rank}\n"
        )
    return run


def test_the_failing_ranks_lines_come_first(tmp_path):
    run = run_with_logs(tmp_path, 4)
    run.launch.mkdir()
    output = run.launch / "job-7.out"
    output.write_text(OUTPUT)
    write_record(run, JobRecord("7", "cpu", str(output), 0.0))
    job, *ranks = log_ends(run)
    assert job.lines[0] == "tiny for the 2nd time"
    assert [rank.title for rank in ranks] == [
        "rank 2 (failed)", "rank 3 (failed)", "rank 0 (failed)", "rank 1 (failed)",
    ]  # fmt: skip
    assert ranks[0].lines[-1] == "I am 2"
    assert "before" not in ranks[0].lines


def test_of_many_ranks_some_are_shown_and_any_can_be_asked_for(tmp_path):
    run = run_with_logs(tmp_path, 30)
    assert [end.title for end in log_ends(run)] == [f"rank {n}" for n in range(8)]
    (last,) = log_ends(run, 29)
    assert last.lines[-1] == "I am 29"
    with pytest.raises(
        UserError, match=r"rank 30 has no log in .*: there are those of ranks 0 to 29"
    ):
        log_ends(run, 30)


def followed(run: RunFolder, happens, rank: int | None = None) -> list[tuple[str, str]]:
    """What is said of a run to which things happen, one before each look at it."""
    said: list[tuple[str, str]] = []
    left = list(happens)

    def is_over() -> bool:
        if left:
            left.pop(0)()
        return not left

    shown = log_ends(run, rank) if rank is not None or run.logs.exists() else []
    follow(run, rank, shown, lambda *words: said.append(words), is_over)
    return said


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(run_logs, "_LOOK_EVERY_S", 0.0)


def test_what_is_added_is_said_once_and_the_last_line_too(tmp_path):
    run = run_with_logs(tmp_path, 1)
    log = run.logs / "rank0.log"
    add = lambda text: lambda: log.open("a").write(text)  # noqa: E731
    said = followed(run, [add("a\nb"), lambda: None, add("c\nd")])
    assert said == [("rank 0", "a"), ("rank 0", "bc"), ("rank 0", "d")]


def test_logs_that_appear_later_are_said_from_their_beginning(tmp_path):
    run = RunFolder(tmp_path)
    output = run.launch / "job-7.out"

    def begin() -> None:
        output.write_text("begun\n")
        run.logs.mkdir()
        for rank in range(12):
            (run.logs / f"rank{rank}.log").write_text(f"I am {rank}\n")

    write_record(run, JobRecord("7", "cpu", str(output), 0.0))
    said = followed(run, [lambda: None, begin, lambda: None])
    assert said[0] == ("job 7", "begun") or said[-1] == ("job 7", "begun")
    assert {words for words in said if words[0] != "job 7"} == {
        (f"rank {rank}", f"I am {rank}") for rank in range(8)
    }


def test_a_log_in_whose_place_another_comes_is_read_from_its_beginning(tmp_path):
    run = run_with_logs(tmp_path, 2)

    def replace() -> None:
        log = run.logs / "rank1.log"
        log.rename(run.logs / "old")
        log.write_text("anew, and longer than what was there before: " + 200 * "x" + "\n")

    def cut() -> None:
        (run.logs / "rank1.log").write_text("short\n")

    said = followed(run, [replace, cut, lambda: None], rank=1)
    assert [line[:5] for _, line in said] == ["anew,", "short"]


def test_a_run_that_printed_nothing_says_so(tmp_path):
    with pytest.raises(UserError, match="nothing has been printed yet"):
        log_ends(RunFolder(tmp_path))
