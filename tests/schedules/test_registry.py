"""Every row of the registry keeps what it says: sizes, placement, who can run it."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.placement import placement_of
from dsv3_plugin.schedules.registry import RAMPS, SCHEDULES, ScheduleKind
from dsv3_plugin.schedules.validate import validate

KINDS = sorted(SCHEDULES.values(), key=lambda kind: kind.name)
MADE = [kind for kind in KINDS if not kind.searched]


def names(kind: ScheduleKind) -> str:
    return kind.name


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_a_row_is_complete(kind):
    assert SCHEDULES[kind.name] is kind
    assert not kind.name.endswith(".csv")  # that is a file
    assert 0 < len(kind.summary) <= 80
    assert kind.multiple >= 1
    for pp in range(1, 17):
        assert kind.least_micro_batches(pp) >= 1
        assert kind.least_micro_batches(pp) % kind.multiple == 0
        assert kind.least_micro_batches(pp) <= kind.least_micro_batches(pp + 1)
        if kind.runs_upstream:
            assert kind.upstream_multiple(pp) % kind.multiple == 0


@pytest.mark.parametrize("kind", MADE, ids=names)
@given(st.integers(1, 9), st.integers(0, 40), st.integers(2, 4))
@settings(max_examples=120)
def test_a_schedule_is_valid_wherever_it_exists_and_refused_elsewhere(
    kind, pp, micro_batches, stages_per_rank
):
    if not kind.exists(pp, micro_batches):
        with pytest.raises(UserError, match=kind.name) as refused:
            kind.schedule(pp, micro_batches, stages_per_rank)
        assert "\n" not in str(refused.value)
        assert not list(kind.forms(pp, micro_batches, stages_per_rank))
        return
    forms = list(kind.forms(pp, micro_batches, stages_per_rank))
    assert len(forms) == 1 + (kind.make_overlapped is not None)
    for schedule in forms:
        validate(schedule)
        assert schedule.name.startswith(kind.name)
        assert schedule.pp == pp
        assert schedule.num_micro_batches == micro_batches
        assert placement_of(schedule) == kind.placement(pp, stages_per_rank)


@pytest.mark.parametrize("kind", KINDS, ids=names)
@pytest.mark.parametrize("pp", [2, 4, 8])
def test_the_placement_has_the_stages_that_the_row_says(kind, pp):
    for wanted in (2, 3) if kind.stages_per_rank is None else (None,):
        placement = kind.placement(pp, wanted)
        assert {len(chunks) for chunks in placement.chunks} == {kind.stages_per_rank or wanted}
        assert placement.depth * placement.copies == pp * placement.chunks_per_rank


def test_what_is_known_of_ours():
    assert {"1f1b", "zb1p", "1f1b_v", "zbv", "search"} <= {*RAMPS}
    assert not {"interleaved", "dualpipe", "dualpipe_v"} & {*RAMPS}
    assert {"1f1b", "interleaved"} <= {kind.name for kind in KINDS if kind.runs_upstream}
    assert SCHEDULES["interleaved"].upstream_multiple(8) == 8
    assert SCHEDULES["search"].searched
    assert {kind.name for kind in KINDS if kind.placement(4).copies == 2} == {"dualpipe"}
    assert not SCHEDULES["dualpipe"].exists(7, 20)


def test_the_page_says_what_the_rows_say():
    page = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text()
    described = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|", page, re.MULTILINE)
    assert [name for name, *_ in described] == [*SCHEDULES]
    for name, summary, stages in described:
        assert summary == SCHEDULES[name].summary
        assert stages.isdigit() == (SCHEDULES[name].stages_per_rank is not None)
        assert not stages.isdigit() or int(stages) == SCHEDULES[name].stages_per_rank
