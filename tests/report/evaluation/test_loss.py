"""Losses as tables, a picture and a mapping."""

import json
import math
from xml.etree import ElementTree

import pytest

from dsv3_plugin.evaluation.loss import Losses
from dsv3_plugin.report.evaluation import loss as report
from dsv3_plugin.report.evaluation.subject import Subject

TEXT = Losses("text", 3, (8.0, 6.0, 5.0, 3.0, 2.0))
CODE = Losses("code", 1200, (4.0, 2.0, 2.0, 1.0, 1.0))
LOST = Losses("lost", 1, (math.nan, 1e4, math.inf, 1e4, 1e4))
"""Of a model whose training went wrong."""

SUBJECT = Subject("runs/tiny", ("model.rope_type=rope",))


def corners(line: report.Line) -> list[tuple[float, float]]:
    return [tuple(map(float, corner.split(","))) for corner in line.points.split()]


def test_each_set_has_a_row():
    table = report.totals([TEXT, CODE])
    assert table.header == ("set", "sequences", "of tokens", "nats per token", "perplexity")
    assert table.rows == (
        ("text", "3", "5", "4.8000", "121.51"),
        ("code", "1,200", "5", "2.0000", "7.39"),
    )


def test_each_bucket_of_context_has_a_row_and_each_set_a_column():
    table = report.by_position([TEXT, CODE])
    assert table.header == ("tokens of context", "text", "code")
    assert table.rows == (
        ("1", "8.0000", "4.0000"),
        ("2", "6.0000", "2.0000"),
        ("3 to 4", "4.0000", "1.5000"),
        ("5", "2.0000", "1.0000"),
    )
    assert report.by_position([TEXT]).header == ("tokens of context", "nats per token")


def test_the_picture_has_context_in_powers_of_two_and_losses_upwards():
    drawn = report.drawn([TEXT, CODE])
    text, code = (corners(line) for line in drawn.lines)
    assert [x for x, _ in text] == [x for x, _ in code] == [x for x, _ in drawn.across]
    assert (text[0][0], text[-1][0]) == (report.LEFT, report.RIGHT)
    assert text[2][0] - text[1][0] == pytest.approx(text[1][0] - text[0][0], abs=0.2), "1, 2, 4"
    assert text[0][1] == report.TOP, "the largest loss"
    assert code[-1][1] == report.BOTTOM, "the least"
    assert {name: y for y, name in drawn.up}["4"] == text[2][1] == code[0][1]
    assert drawn.lines[0].stroke != drawn.lines[1].stroke


def test_what_is_no_number_has_no_place_in_the_picture_and_none_in_json(tmp_path):
    assert [name for _, name in report.drawn([LOST]).up] == ["10,000"]
    assert len(corners(report.drawn([LOST]).lines[0])) == 2
    assert corners(report.drawn([Losses("lost", 1, (math.nan,))]).lines[0]) == []
    found = json.loads(json.dumps(report.mapping([LOST], SUBJECT), allow_nan=False))
    assert found["sets"][0]["loss"] is None
    assert [each["loss"] for each in found["sets"][0]["by_position"]] == [None, 1e4, None, 1e4]
    report.write_page([LOST], SUBJECT, tmp_path / "lost.html")
    assert report.totals([LOST]).rows == (("lost", "1", "5", "nan", "nan"),)


def test_large_losses_have_a_few_marks():
    assert len(report.drawn([Losses("far", 1, (0.0, 12_345.0))]).up) <= 12


def test_the_mapping_says_of_what_it_is():
    found = report.mapping([TEXT], SUBJECT)
    assert (found["checkpoint"], found["changes"]) == ("runs/tiny", ["model.rope_type=rope"])
    (one,) = found["sets"]
    assert (one["name"], one["sequences"], one["seq_length"], one["loss"]) == ("text", 3, 5, 4.8)
    assert one["by_position"][2] == {"first": 3, "last": 4, "tokens": 6, "loss": 4.0}


def test_the_page_shows_both_tables_and_a_legend_of_several_sets(tmp_path):
    page = tmp_path / "loss.html"
    report.write_page([TEXT, Losses("<code>", 1, CODE.by_position)], SUBJECT, page)
    text = page.read_text()
    assert "<h1>runs/tiny model.rope_type=rope, loss</h1>" in text
    assert "&lt;code&gt;" in text
    assert "<code>" not in text
    assert all(number in text for number in ("121.51", "3 to 4", "1.5000"))
    picture = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    assert len(picture.findall("polyline")) == 2
    assert 'class="legend"' in text
    report.write_page([TEXT], SUBJECT, page)
    assert 'class="legend"' not in page.read_text()
