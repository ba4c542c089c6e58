"""The picture of a step is of the step that is planned."""

import pytest

from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.planner.time.timelines import step_timeline
from dsv3_plugin.recipe.load import load_recipe

CLUSTER = load_cluster("h800")


@pytest.mark.parametrize("imbalance", [1.0, 1.5])
def test_the_timeline_is_that_of_the_plans_step(imbalance):
    recipe = load_recipe("pretrain/deepseek-v3", ["training.tokens=100M"])
    planned = make_plan(recipe, CLUSTER, CLUSTER.machine, imbalance).longest
    timeline = step_timeline(recipe, CLUSTER, CLUSTER.machine, planned.batch, imbalance)
    assert timeline.schedule.pp == len(planned.ranks)
    for rank, spans in zip(planned.ranks, timeline.spans, strict=True):
        assert sum(span.end - span.start for span in spans) == pytest.approx(rank.busy_seconds)
    slowest = planned.slowest.pipeline_rank
    waits = timeline.idle_per_rank[slowest]
    assert waits == pytest.approx(planned.time_by_part["pipeline"], abs=1e-9)


def test_what_fits_in_no_layout_is_drawn_all_the_same():
    overrides = ["training.tokens=100M", "pipeline.layout=balanced"]
    recipe = load_recipe("pretrain/deepseek-v3", overrides)
    tight = CLUSTER.model_copy(update={"memory_gb": 1.0})
    plan = make_plan(recipe, tight, tight.machine)
    assert not plan.limit.fits
    timeline = step_timeline(recipe, tight, tight.machine, plan.longest.batch)
    assert timeline.makespan > 0
