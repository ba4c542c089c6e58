"""Schedules in files: ours and torch's, whole, broken and unreadable."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import Schedule, csv_text
from dsv3_plugin.schedules.csv_file import read_csv, write_csv
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.zbv import zbv
from tests.schedules import torch_schedules


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "dualpipe_v.csv"
    write_csv(dualpipe_v(3, 7), path)
    assert read_csv(path) == dualpipe_v(3, 7)
    with pytest.raises(UserError, match=r"cannot write .*nowhere"):
        write_csv(dualpipe_v(3, 7), tmp_path / "nowhere" / "x.csv")


@pytest.mark.parametrize(
    ("name", "pp", "vp", "micro_batches"),
    [
        ("ScheduleDualPipeV", 4, 2, 9),
        ("ScheduleZBVZeroBubble", 4, 2, 8),
        ("ScheduleInterleaved1F1B", 4, 2, 8),
        ("ScheduleInterleavedZeroBubble", 4, 2, 8),
        ("ScheduleLoopedBFS", 2, 2, 4),
    ],
)
def test_a_file_of_torch_with_sends_and_receives_is_read(name, pp, vp, micro_batches, tmp_path):
    theirs = torch_schedules.build(name, pp, vp, micro_batches)
    path = tmp_path / "theirs.csv"
    theirs._dump_csv(str(path), format="compute_comms")
    schedule = read_csv(path)
    assert schedule.name == "theirs"
    assert [[str(action) for _, action in schedule.actions(rank)] for rank in range(pp)] == [
        [str(a) for a in theirs.pipeline_order[rank] if a is not None] for rank in range(pp)
    ]


FLAT = "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n"


def read(tmp_path, text: str) -> Schedule:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    return read_csv(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            FLAT + "1RECV_F0,1F0,1B0,1SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1\n",
            None,
        ),
        (
            FLAT.replace("0SEND_F1,", "") + "1RECV_F0,1F0,1B0,1SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1\n",
            r"rank 1, slot 4: 1RECV_F1 receives what nobody sends: 0SEND_F1 is missing",
        ),
        (
            FLAT + "1RECV_F0,1F0,1B0,1SEND_B0,1F1,1B1,1SEND_B1\n",
            r"rank 0, slot 3: 0SEND_F1 sends what nobody receives: 1RECV_F1 is missing",
        ),
        (
            FLAT + "1RECV_F1,1RECV_F0,1F0,1B0,1SEND_B0,1F1,1B1,1SEND_B1\n",
            r"rank 1, slot 0: 1RECV_F1 is receive 0 from rank 0, whose send 0 \(slot 1\) is",
        ),
        (
            FLAT + "1RECV_F0,1F0,1B0,1SEND_B0,1F1,1RECV_F1,1B1,1SEND_B1\n",
            r"rank 1, slot 4: 1F1 comes before 0F1 is received",
        ),
        (
            FLAT + "1RECV_F0,1F0,1SEND_B0,1B0,1RECV_F1,1F1,1B1,1SEND_B1\n",
            r"rank 1, slot 2: 1SEND_B0 comes before what it sends",
        ),
        (
            FLAT + "1RECV_F0,1RECV_F0,1F0,1B0,1SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1\n",
            r"rank 1, slot 0: 1RECV_F0 is also at rank 1, slot 1",
        ),
        (
            "0F0,0SEND_F0,0RECV_B0,0F1,0SEND_F1,0B0,0RECV_B1,0B1\n"
            "1RECV_F0,1F0,1RECV_F1,1F1,1B0,1SEND_B0,1B1,1SEND_B1\n",
            r"deadlock of sends and receives: rank 0, slot 2: 0RECV_B0 waits for 1SEND_B0",
        ),
        (FLAT + "1F0,1B0,1F1,1B1\n", r"sends what nobody receives"),
    ],
)
def test_sends_and_receives_of_a_file_are_checked(text, words, tmp_path):
    if words is None:
        read(tmp_path, text)
        return
    with pytest.raises(UserError, match=words):
        read(tmp_path, text)


def test_a_file_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot read the schedule"):
        read_csv(tmp_path / "none.csv")
    binary = tmp_path / "x.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no text file"):
        read_csv(binary)


def test_slots_are_columns_of_the_file(tmp_path):
    text = csv_text(zbv(3, 5).rows)
    rows = [line.split(",") for line in text.splitlines()]
    slot = rows[2].index("2I1")
    rows[2][slot] = ""
    with pytest.raises(UserError, match=rf"mine\.csv: rank 2, slot {rows[2].index('2W1')}: 2W1"):
        read(tmp_path, "\n".join(map(",".join, rows)) + "\n")
