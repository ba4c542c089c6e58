"""The picture of a pipeline: every action in its place, and no more boxes than can be seen."""

import re

import pytest

from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.report.plan.case import Case
from dsv3_plugin.report.plan.lanes import NAMES, lanes
from dsv3_plugin.report.plan.page import page
from dsv3_plugin.schedules.costs import Costs, relative_stages
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.simulate import simulate
from dsv3_plugin.schedules.timeline import Timeline
from tests.plans import plan

BOX = re.compile(r"M(?P<x>[\d.]+) (?P<y>[\d.]+)h(?P<w>[\d.]+)v14h-[\d.]+z")


def timeline(name: str, pp: int, micro_batches: int) -> Timeline:
    schedule = SCHEDULES[name].schedule(pp, micro_batches, None)
    stages = schedule.num_stages // len(schedule.streams)
    costs = relative_stages(Costs(), pp, [1.0] * stages)
    return simulate(schedule, costs.repeated(len(schedule.streams)))


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("1f1b", {"forward", "backward"}),
        ("zb1p", {"forward", "backward", "input_gradient", "weight_gradient"}),
        ("dualpipe_v", {*NAMES}),
    ],
)
@pytest.mark.parametrize("micro_batches", [8, 64])
def test_boxes_cover_what_ranks_compute(name, kinds, micro_batches):
    drawn = timeline(name, 4, micro_batches)
    picture = lanes(drawn, width=800, lane=16)
    assert {*picture.paths} <= kinds
    boxes = [box for path in picture.paths.values() for box in BOX.finditer(path)]
    assert "".join(box[0] for box in boxes) == "".join(picture.paths.values())
    for rank, idle in enumerate(drawn.idle_per_rank):
        mine = [box for box in boxes if float(box["y"]) == rank * 16 + 1]
        busy = sum(float(box["w"]) for box in mine) / 800 * drawn.makespan
        assert busy == pytest.approx(drawn.makespan - idle, rel=0.02)
        assert picture.idle[rank] == pytest.approx(idle / drawn.makespan)
        assert max(float(box["x"]) + float(box["w"]) for box in mine) <= 800.1


def test_a_long_step_is_drawn_with_few_boxes():
    drawn = timeline("dualpipe_v", 8, 400)
    picture = lanes(drawn, width=800, lane=16)
    boxes = sum(path.count("M") for path in picture.paths.values())
    assert sum(map(len, drawn.spans)) > 5000
    assert boxes < 1000


def test_the_page_draws_the_step():
    model = load_recipe("pretrain/tiny").model
    drawn = timeline("dualpipe_v", 4, 8)
    text = page([Case("a", model, 256, plan(), timeline=drawn)])
    assert "The pipeline of a step, batch 15,360" in text
    assert text.count("% idle</text>") == 4
    for name in NAMES:
        assert f".{name} {{ fill:" in text
