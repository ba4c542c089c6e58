"""A search made by one rank for all of them."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.pipeline.shared_schedules import searched_on_rank_zero
from dsv3_plugin.schedules.actions import Schedule, csv_text
from dsv3_plugin.schedules.zbv import zbv
from tests.gloo_ranks import run_ranks


def _ask(rank: int) -> tuple[list[Schedule], list[int], str]:
    asked: list[int] = []

    def search(micro_batches: int) -> Schedule:
        asked.append(micro_batches)
        if micro_batches > 5:
            raise UserError("no schedule for so many; take fewer")
        return zbv(2, micro_batches)

    schedules = searched_on_rank_zero(search, timeout_minutes=0.5)
    found = [schedules(micro_batches) for micro_batches in (4, 5, 4)]
    with pytest.raises(UserError) as caught:
        schedules(6)
    return found, asked, str(caught.value)


def test_one_rank_searches_and_all_have_what_it_found(tmp_path):
    results = run_ranks(2, _ask, scratch=tmp_path)
    assert [asked for _, asked, _ in results] == [[4, 5, 6], []]
    for found, _, sentence in results:
        assert [csv_text(schedule.rows) for schedule in found] == [
            csv_text(zbv(2, micro_batches).rows) for micro_batches in (4, 5, 4)
        ]
        assert sentence == "no schedule for so many; take fewer"
