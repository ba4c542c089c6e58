"""metrics.jsonl survives kills, and a follower sees each record once."""

import json
import time

from dsv3_plugin.files.metrics_file import Follower, append, keep_until, read


def record(iteration: int, **more) -> dict:
    return {"iteration": iteration, "time": time.time(), **more}


def test_a_line_cut_short_by_a_kill_is_no_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, record(1))
    append(path, record(2))
    path.write_text(path.read_text()[:-5])
    assert [line["iteration"] for line in read(path)] == [1]


def test_a_resumed_run_writes_its_steps_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    keep_until(path, 3)  # there is none yet
    for iteration in (0, 1, 2, 3, 4):
        append(path, record(iteration))
    with path.open("a") as file:
        file.write('{"iterat')
    keep_until(path, 3)
    append(path, record(4, again=True))
    assert [line["iteration"] for line in read(path)] == [0, 1, 2, 3, 4]
    assert read(path)[-1]["again"]
    keep_until(path, -1)
    assert read(path) == []


def test_a_follower_sees_what_is_added_and_nothing_else(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, {"iteration": 1, "time": time.time() - 100})
    follower = Follower(path)
    assert follower.new_records() == []
    append(path, record(2))
    with path.open("a") as file:
        file.write(json.dumps(record(3))[:-4])
    assert [line["iteration"] for line in follower.new_records()] == [2]
    assert follower.new_records() == []


def test_a_follower_survives_the_lines_that_a_resumed_run_drops(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for iteration in range(5):
        append(path, {"iteration": iteration, "time": time.time() - 100})
    follower = Follower(path)
    keep_until(path, 2)
    for iteration in range(3, 9):  # longer than before
        append(path, record(iteration))
    assert [line["iteration"] for line in follower.new_records()] == [3, 4, 5, 6, 7, 8]


def test_a_follower_waits_for_a_file_that_is_not_there_yet(tmp_path):
    follower = Follower(tmp_path / "metrics.jsonl")
    assert follower.new_records() == []
    append(tmp_path / "metrics.jsonl", record(1))
    assert len(follower.new_records()) == 1
