"""What was found of the needles, as a table, a heat map and a mapping."""

import json

import pytest

from dsv3_plugin.evaluation.needle import Asked, Found, Setting
from dsv3_plugin.report.evaluation import needle as report
from dsv3_plugin.report.evaluation.subject import Subject

SUBJECT = Subject("runs/tiny", ())


@pytest.fixture
def found():
    """Two questions at each place; right are those at the end of a text, and one in its middle."""
    setting = Setting(lengths=(128, 1024), depths=(0.0, 0.5, 1.0), kinds=("words",), samples=2)
    right = {(128, 0.5, 0), *((length, 1.0, n) for length in (128, 1024) for n in (0, 1))}
    asked = [
        Asked(
            "words", length, depth, sample, "The passcode of <Rowan> is", " amber falcon.",
            " amber falcon." if (length, depth, sample) in right else " amber & so on",
        )
        for length in setting.lengths
        for depth in (*setting.depths, None)
        for sample in range(2)
    ]  # fmt: skip
    return Found(setting, tuple(asked))


def test_shares_stand_by_length_and_depth_with_the_control_last(found):
    table = report.grid(found, "words")
    assert table.header == ("length", "0%", "50%", "100%", "no needle")
    assert table.rows == (("128", "0%", "50%", "100%", "0%"), ("1,024", "0%", "0%", "100%", "0%"))


def test_what_the_numbers_are_is_said(found):
    assert [*report.sentences(found, SUBJECT, "a text")] == [
        "runs/tiny: facts found in a text",
        "2 questions each; one fact; right is the whole answer, continued greedily",
    ]
    several = Found(Setting((9,), (0.0,), ("words",), needles=4), ())
    assert "4 facts, one asked for" in [*report.sentences(several, SUBJECT, "")][1]
    assert report.title("words").startswith("words: right answers by depth of the needle (a guess")


def test_the_heat_map_is_the_table(found):
    drawn = report.heat_map(found, "words")
    table = report.grid(found, "words")
    assert drawn.columns == table.header[1:]
    assert [(name, *(cell.text for cell in cells)) for name, cells in drawn.rows] == [*table.rows]
    assert [cell.share for cell in drawn.rows[0][1]] == [0.0, 0.5, 1.0, 0.0]


def test_the_mapping_has_every_question_and_whether_it_was_right(found):
    read = json.loads(json.dumps(report.mapping(found, SUBJECT, "a text")))
    assert (read["checkpoint"], read["haystack"]) == ("runs/tiny", "a text")
    assert read["setting"]["lengths"] == [128, 1024]
    shares = {(one["length"], one["depth"]): one["share"] for one in read["right"]}
    assert shares[128, 0.5] == 0.5
    assert shares[1024, None] == 0.0
    assert len(read["asked"]) == found.setting.questions == 16
    assert sum(one["right"] for one in read["asked"]) == 5
    assert 0 < read["chance"]["words"] < 0.01


def test_the_page_lists_wrong_answers_and_what_was_said_as_text(found, tmp_path):
    page = tmp_path / "needles.html"
    report.write_page(found, SUBJECT, "a text", page)
    text = page.read_text()
    assert "Where the answer was another (7)" in text, "the control's are none"
    assert "&lt;Rowan&gt;" in text
    assert "<Rowan>" not in text
    assert "amber &amp; so on" in text
    assert text.count('class="forward"') == 2 * 4
