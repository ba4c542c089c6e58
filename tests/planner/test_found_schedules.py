"""What was searched for is kept, found again by its question alone, and never trusted."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner import found_schedules
from dsv3_plugin.planner.found_schedules import Question, find_or_search
from dsv3_plugin.schedules.actions import csv_text
from dsv3_plugin.schedules.costs import Costs, relative_stages
from dsv3_plugin.schedules.one_f_one_b import one_f_one_b
from dsv3_plugin.schedules.search import search as searching
from dsv3_plugin.schedules.zbv import zbv

COSTS = relative_stages(Costs(), 2, [1.0, 2.0, 2.0, 1.5])
ASKED = Question(2, 4, COSTS, limit=6.0, effort=0.001)


class Searches:
    """Counts the searches, and makes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        self._search = found_schedules.search
        monkeypatch.setattr(found_schedules, "search", self)

    def __call__(self, *args, **kwargs):
        self.number += 1
        return self._search(*args, **kwargs)


@pytest.fixture
def searches(monkeypatch) -> Searches:
    return Searches(monkeypatch)


def test_it_is_searched_for_once(searches, tmp_path):
    told = []
    first = find_or_search(ASKED, tmp_path / "schedules", told.append)
    again = find_or_search(ASKED, tmp_path / "schedules", told.append)
    assert searches.number == 1
    assert (again.name, again.rows) == (first.name, first.rows)
    assert told == ["Searching for a schedule of 4 micro-batches on 2 pipeline ranks."]
    assert [file.name for file in (tmp_path / "schedules").iterdir()] == [ASKED.file_name]


@pytest.mark.parametrize(
    "other",
    [
        replace(ASKED, micro_batches=5),
        replace(ASKED, costs=relative_stages(Costs(), 2, [1.0, 2.0, 2.0, 1.5000000001])),
        replace(ASKED, costs=replace(COSTS, latency=1e-12)),
        replace(ASKED, limit=6.5),
        replace(ASKED, limit=None),
        replace(ASKED, seed=1),
        replace(ASKED, effort=0.002),
    ],
    ids=["micro-batches", "a stage", "latency", "limit", "no limit", "seed", "effort"],
)
def test_another_question_has_another_file(other):
    assert other.file_name != ASKED.file_name
    assert replace(ASKED).file_name == ASKED.file_name


def test_another_version_of_the_search_has_other_files(monkeypatch):
    before = ASKED.file_name
    monkeypatch.setattr(found_schedules, "VERSION", searching.VERSION + 1)
    assert ASKED.file_name != before


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (csv_text(zbv(2, 4).rows).encode()[:60], "no rank holds stage 1"),
        (b"", "holds no actions"),
        (b"\xff\xfe\x00", "no text file"),
        (csv_text(zbv(2, 5).rows).encode(), "it is of 2 ranks and 5 micro-batches"),
        (csv_text(one_f_one_b(2, 4).rows).encode(), "its stages lie elsewhere"),
    ],
    ids=["cut short", "empty", "binary", "of another batch", "of another placement"],
)
def test_a_broken_file_is_searched_for_anew(searches, tmp_path, content, why):
    told = []
    file = tmp_path / ASKED.file_name
    file.write_bytes(content)
    found = find_or_search(ASKED, tmp_path, told.append)
    assert searches.number == 1
    assert told[0].startswith(f"{file} is not the schedule that was kept there (")
    assert why in told[0]
    assert told[0].endswith("): it is searched for anew.")
    assert len(told) == 2
    assert file.read_text() == csv_text(found.rows)


def test_what_holds_too_much_is_not_the_answer(tmp_path):
    with pytest.raises(UserError, match="more activations than there is room for"):
        replace(ASKED, limit=1.0).refuse_other(zbv(2, 4))


def test_what_cannot_be_kept_is_used(searches, tmp_path):
    told = []
    (tmp_path / "schedules").write_text("a file in the folder's place")
    found = find_or_search(ASKED, tmp_path / "schedules", told.append)
    assert told[0].startswith(f"What is searched for is not kept: {tmp_path / 'schedules'} cannot")
    folder = tmp_path / "other"
    (folder / ASKED.file_name).mkdir(parents=True)
    assert find_or_search(ASKED, folder, told.append).rows == found.rows
    assert told[-1].startswith("What was found is used and not kept: cannot write ")
    assert searches.number == 2


def test_who_asks_meanwhile_waits_for_the_one_that_searches(monkeypatch, tmp_path):
    under_way, asked_again = threading.Event(), threading.Event()
    number = 0

    def search(pp, micro_batches, *args, **kwargs):
        nonlocal number
        number += 1
        under_way.set()
        assert asked_again.wait(60)
        return SimpleNamespace(schedule=zbv(pp, micro_batches))

    monkeypatch.setattr(found_schedules, "search", search)
    told, found = [], []

    def waiting(sentence: str) -> None:
        told.append(sentence)
        asked_again.set()

    first = threading.Thread(
        target=lambda: found.append(find_or_search(ASKED, tmp_path, lambda sentence: None))
    )
    first.start()
    assert under_way.wait(60)
    found.append(find_or_search(ASKED, tmp_path, waiting))
    first.join()
    assert number == 1
    assert told == [f"Waiting for another process that searches for a schedule in {tmp_path}."]
    assert found[0].rows == found[1].rows == zbv(2, 4).rows
