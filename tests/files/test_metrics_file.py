"""metrics.jsonl survives kills, and a follower sees each record once."""

import json
import time

import pytest

from dsv3_plugin.files.metrics_file import MetricsFile


def record(iteration: int, **more) -> dict:
    return {"iteration": iteration, "time": time.time(), **more}


@pytest.fixture
def metrics(tmp_path) -> MetricsFile:
    return MetricsFile(tmp_path / "metrics.jsonl")


def test_a_line_cut_short_by_a_kill_is_no_record(metrics):
    assert metrics.read() == []
    metrics.append(record(1))
    metrics.append(record(2))
    metrics.path.write_text(metrics.path.read_text()[:-5])
    assert [line["iteration"] for line in metrics.read()] == [1]


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"[" * 200_000, b"[1, 2]", b"7", b'{"iteration": "1"}', b'{"time": 1}',
     b'{"iteration": 9, "x": "' + b"x" * 9_000_000 + b'"}'],
    ids=["no text", "deep", "list", "number", "text", "none", "long"],
)  # fmt: skip
def test_what_is_no_record_is_passed_over(metrics, line):
    metrics.append(record(1))
    follower = metrics.follow()
    with metrics.path.open("ab") as file:
        file.write(line + b"\n")
    metrics.append(record(2))
    assert [line["iteration"] for line in follower.new_records()] == [2]
    assert [line["iteration"] for line in metrics.read()] == [1, 2]
    metrics.keep_until(9)
    assert len(metrics.path.read_bytes().splitlines()) == 2


def test_a_follower_passes_over_what_tells_no_time(metrics):
    follower = metrics.follow()
    metrics.append({"iteration": 1})
    metrics.append({"iteration": 2, "time": "now"})
    metrics.append(record(3))
    assert [line["iteration"] for line in follower.new_records()] == [3]


def test_a_resumed_run_writes_its_steps_once(metrics):
    metrics.keep_until(3)  # there is none yet
    for iteration in (0, 1, 2, 3, 4):
        metrics.append(record(iteration))
    with metrics.path.open("a") as file:
        file.write('{"iterat')
    metrics.keep_until(3)
    metrics.append(record(4, again=True))
    assert [line["iteration"] for line in metrics.read()] == [0, 1, 2, 3, 4]
    assert metrics.read()[-1]["again"]
    metrics.keep_until(-1)
    assert metrics.read() == []
    assert [path.name for path in metrics.path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_follower_sees_what_is_added_and_nothing_else(metrics):
    metrics.append({"iteration": 1, "time": time.time() - 100})
    follower = metrics.follow()
    assert follower.new_records() == []
    metrics.append(record(2))
    with metrics.path.open("a") as file:
        file.write(json.dumps(record(3))[:-4])
    assert [line["iteration"] for line in follower.new_records()] == [2]
    assert follower.new_records() == []


def test_a_follower_survives_the_lines_that_a_resumed_run_drops(metrics):
    for iteration in range(5):
        metrics.append({"iteration": iteration, "time": time.time() - 100})
    follower = metrics.follow()
    metrics.keep_until(2)
    for iteration in range(3, 9):  # longer than before
        metrics.append(record(iteration))
    assert [line["iteration"] for line in follower.new_records()] == [3, 4, 5, 6, 7, 8]


def test_a_follower_waits_for_a_file_that_is_not_there_yet(metrics):
    follower = metrics.follow()
    assert follower.new_records() == []
    metrics.append(record(1))
    assert len(follower.new_records()) == 1


def test_damaged_lines_are_known_by_their_numbers(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    assert file.damaged_lines() == []
    file.path.write_bytes(b'{"iteration": 1}\n{"iter\n\xff\n{"iteration": 2}\n{"loss": 1}\n[')
    assert file.damaged_lines() == [2, 3, 5, 6]
    assert [record["iteration"] for record in file.read()] == [1, 2]
