"""Pictures: both formats, everything in them, nothing over the edge."""

import dataclasses
from xml.etree import ElementTree

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules import draw as drawing
from dsv3_plugin.schedules.actions import Overlap
from dsv3_plugin.schedules.costs import Costs, even_stages
from dsv3_plugin.schedules.draw import draw
from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.interleaved import interleaved
from dsv3_plugin.schedules.simulate import simulate
from dsv3_plugin.schedules.timeline import Timeline
from dsv3_plugin.schedules.zbv import zbv


def timed(schedule) -> Timeline:
    return simulate(schedule, even_stages(schedule, Costs()))


def test_png_and_svg_are_pictures(tmp_path):
    timeline = timed(dualpipe_v(2, 5))
    for name in ("v.png", "v.svg"):
        draw(timeline, tmp_path / name)
    assert (tmp_path / "v.png").read_bytes().startswith(b"\x89PNG")
    root = ElementTree.fromstring((tmp_path / "v.svg").read_text())
    assert root.tag.endswith("svg")


@pytest.mark.parametrize(
    "schedule",
    [dualpipe(4, 8), dualpipe_v(3, 7), zbv(3, 5), interleaved(2, 4, 3, overlap=True)],
    ids=lambda schedule: schedule.name,
)
def test_every_computation_has_its_box(schedule):
    timeline = timed(schedule)
    boxes, frames = drawing._boxes(timeline)
    assert len(boxes) == sum(1 for _ in schedule.parts())
    pairs = [a for row in schedule.rows for a in row if isinstance(a, Overlap)]
    assert len(frames) == len(pairs)
    assert len([box for box in boxes if box.kind == "pair"]) == 2 * len(pairs)
    for box in boxes:
        rank = int(box.top)
        assert 0 <= box.left <= box.left + box.width <= timeline.makespan
        assert rank <= box.top < box.top + box.height <= rank + 1


def test_kinds_and_sides_have_colours_of_their_own():
    shades = [drawing._shade(kind, depth) for kind in drawing._HUES for depth in (0.0, 1.0)]
    assert len(set(shades)) == len(shades)
    assert (1.0, 1.0, 1.0) not in shades  # idle alone is white
    directions = drawing._depths(dualpipe(4, 8))
    assert {directions[stage] for stage in range(4)} == {0.0}
    assert {directions[stage] for stage in range(4, 8)} == {1.0}


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (dualpipe(4, 8), "light: the pipeline down the ranks; deep: the one up the ranks"),
        (zbv(2, 3), "light: first stage of a rank; deep: its second"),
        (
            interleaved(2, 4, 4),
            "from light to deep: stages 1 (first), 2, 3 and 4 (last) of a rank",
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_caption_names_every_shade(schedule, words):
    assert drawing._depth_in_words(schedule) == words


def test_the_legend_shows_the_shades_that_are_drawn(tmp_path):
    """matplotlib writes each colour of an SVG as hexadecimal."""
    draw(timed(zbv(2, 4)), tmp_path / "v.svg")
    text = (tmp_path / "v.svg").read_text()
    legend = text[text.index('id="legend_1"') :]
    _, light, deep = drawing._HUES["F"]
    assert light in legend
    assert deep in legend


def test_the_title_gives_makespan_and_idle_time():
    assert drawing._facts(timed(dualpipe_v(8, 20))) == (
        "8 ranks, 20 micro-batches   makespan 59.5   idle 7.72 %"
    )


def test_a_name_is_no_mathematics(tmp_path):
    schedule = dataclasses.replace(zbv(2, 4), name="a$\\frac$ \udcff")
    draw(timed(schedule), tmp_path / "v.svg")
    assert (tmp_path / "v.svg").stat().st_size


def test_other_endings_and_places_are_refused(tmp_path):
    timeline = timed(zbv(2, 4))
    with pytest.raises(UserError, match=r"must end in \.png or \.svg"):
        draw(timeline, tmp_path / "v.pdf")
    with pytest.raises(UserError, match="cannot draw to"):
        draw(timeline, tmp_path / "no" / "v.png")
