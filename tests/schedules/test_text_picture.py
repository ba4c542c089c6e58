"""The picture in letters: what it says of a column is what the timeline has there."""

import pytest

from dsv3_plugin.schedules.costs import Costs, even_stages
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.simulate import simulate
from dsv3_plugin.schedules.text_picture import text_picture


def timeline(name: str, pp: int, micro_batches: int):
    schedule = SCHEDULES[name].schedule(pp, micro_batches, None)
    return simulate(schedule, even_stages(schedule, Costs()))


def test_1f1b_in_columns_of_one_unit_is_what_it_is_by_hand():
    """Two ranks, three micro-batches, a backward as long as two forwards: 12 units."""
    picture = text_picture(timeline("1f1b", 2, 3), width=2 + 12)
    assert picture[:2] == ["0 FF··BBFBB·BB", "1 ·FBBFBBFBB··"]
    assert picture[2] == "F forward, B backward, · idle"


@pytest.mark.parametrize("name", ["zbv", "dualpipe_v", "dualpipe"])
def test_shares_of_a_line_are_shares_of_the_time(name):
    """Of idle columns as of idle time, within a column for each change of a rank's work."""
    timed = timeline(name, 4, 12)
    width = 2000
    picture = text_picture(timed, width + 2)
    for line, idle, spans in zip(picture, timed.idle_per_rank, timed.spans, strict=False):
        assert len(line) == width + 2
        assert abs(line.count("·") - width * idle / timed.makespan) <= len(spans)
    assert "x overlapped pair" in picture[-1] or name == "zbv"
    assert "small letters" in picture[-1]


def test_where_columns_hold_several_actions_that_is_said():
    """Of backwards mostly, each of the time of two forwards."""
    picture = text_picture(timeline("1f1b", 2, 48), width=2 + 18)
    assert picture[-1].endswith(
        "; a column shows what takes most of it, which forward nowhere does"
    )
    assert "F" not in "".join(picture[:2])


def test_a_narrow_terminal_has_a_picture_all_the_same():
    assert all(len(line) >= 10 for line in text_picture(timeline("1f1b", 2, 3), width=1)[:2])
