"""The text form: read and written as torch.distributed.pipelining does, or refused with reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.pipelining.schedules import _Action

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import (
    BACKWARD,
    FORWARD,
    Compute,
    Overlap,
    Schedule,
    Transfer,
    compute_only,
    csv_text,
    parse_cell,
    parse_csv,
)
from dsv3_plugin.schedules.registry import SCHEDULES

NUMBERS = st.integers(0, 200)
PARTS = st.builds(Compute, NUMBERS, st.sampled_from("FBIW"), NUMBERS)
TRANSFERS = st.builds(
    Transfer, NUMBERS, st.sampled_from(["SEND_F", "RECV_F", "SEND_B", "RECV_B"]), NUMBERS
)
PAIRS = st.builds(
    Overlap,
    st.builds(Compute, NUMBERS, st.just(FORWARD), NUMBERS),
    st.builds(Compute, NUMBERS, st.just(BACKWARD), NUMBERS),
)


@given(st.one_of(PARTS, TRANSFERS, PAIRS))
def test_a_cell_reads_back_and_torch_reads_the_same(cell):
    assert parse_cell(str(cell)) == cell
    assert str(_Action.from_str(str(cell))) == str(cell)


def test_idle_cells_and_torchs_housekeeping_are_nothing():
    for text in ("", "  ", "0UNSHARD", "3RESHARD", "1REDUCE_GRAD"):
        assert parse_cell(text) is None


@pytest.mark.parametrize("name", sorted(SCHEDULES.keys() - {"search"}))
def test_a_file_reads_back(name):
    schedule = SCHEDULES[name].schedule(4, 8)
    text = csv_text(schedule.rows)
    assert compute_only(schedule.name, parse_csv(text, "x.csv")) == schedule
    assert len(text.splitlines()) == 4


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("0F7 1F7", "several computations in one cell"),
        ("0F7;1F7", "several computations in one cell"),
        ("(0F7;7F3)OVERLAP_F_B", "one forward with one full backward"),
        ("(7B3;0F7)OVERLAP_F_B", "one forward with one full backward"),
        ("(0F7;7I3)OVERLAP_F_B", "one forward with one full backward"),
        ("(0F7;7B3;1F1)OVERLAP_F_B", "one forward with one full backward"),
        ("F7", "is no action"),
        ("0X7", "is no action"),
        ("0F", "is no action"),
    ],
)
def test_a_bad_cell_is_named_by_rank_and_slot(cell, words):
    with pytest.raises(UserError, match=words) as error:
        parse_csv(f"0F0,0B0\n1F0,{cell}\n", "mine.csv")
    assert "mine.csv: rank 1, slot 1: " in str(error.value)


def test_an_empty_file_is_refused():
    with pytest.raises(UserError, match="holds no actions"):
        parse_csv("\n\n", "mine.csv")


def test_what_follows_from_the_rows():
    schedule = Schedule(
        "v",
        (
            (Compute(0, "F", 0), None, Compute(3, "F", 0), Compute(3, "B", 0), Compute(0, "B", 0)),
            (Compute(1, "F", 0), Compute(2, "F", 0), Compute(2, "B", 0), Compute(1, "B", 0)),
        ),
    )
    assert schedule.pp == 2
    assert schedule.num_stages == 4
    assert schedule.stage_ranks == {0: 0, 1: 1, 2: 1, 3: 0}
    assert schedule.streams == (range(4),)
    assert schedule.first_stages == {0}
    assert schedule.last_stages == {3}
    assert [slot for slot, _ in schedule.actions(0)] == [0, 2, 3, 4]
