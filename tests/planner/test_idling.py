"""A layout with which ranks wait, beside the balanced one."""

from pathlib import Path

import pytest

from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.idling import idling_layout
from dsv3_plugin.planner.layout.balanced import OF_BOUND
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.planner.resolve import load_resolved
from dsv3_plugin.rehearsal.findings import of_layout

CLUSTER = load_cluster("cpu").model_copy(update={"gpus": 4})
PIPELINE = (
    "parallel.processes=4",
    "parallel.pipeline=4",
    "parallel.expert=1",
    "model.num_layers=8",
    "model.moe_layer_freq=[0,1,1,1,1,1,1,1]",
)
UNEVEN = "Ettttt|t|t|tmL"


def _recipe(layout: str, *words: str):
    return load_resolved(
        "pretrain/tiny", (*PIPELINE, f"pipeline.layout={layout}", *words), CLUSTER.machine
    )


@pytest.mark.parametrize("schedule", ["1f1b", "zb1p"])
def test_a_layout_that_idles_is_told_beside_the_balanced_one(schedule: str) -> None:
    word = f"pipeline.schedule={schedule}"
    uneven, balanced = _recipe(UNEVEN, word), _recipe("balanced", word)
    found = idling_layout(uneven, CLUSTER, CLUSTER.machine)
    assert found is not None
    assert found.balanced == balanced.pipeline.layout
    plans = [make_plan(recipe, CLUSTER, CLUSTER.machine) for recipe in (uneven, balanced)]
    saving = plans[0].phases[-1].time_by_part.get("saving", 0)
    evaluating = plans[0].phases[-1].time_by_part.get("evaluation", 0)
    assert found.seconds == pytest.approx(plans[0].phases[-1].step_seconds - saving - evaluating)
    assert found.seconds > OF_BOUND * found.balanced_seconds > 0
    slowest = plans[0].phases[-1].slowest
    busy = [rank.busy_seconds for rank in plans[0].phases[-1].ranks]
    assert found.rank == slowest.pipeline_rank
    assert found.of_mean == pytest.approx(slowest.busy_seconds * 4 / sum(busy))
    assert idling_layout(balanced, CLUSTER, CLUSTER.machine) is None


def test_the_balanced_layout_has_to_fit() -> None:
    uneven = _recipe(UNEVEN)
    small = CLUSTER.model_copy(update={"memory_gb": 0.01})
    assert idling_layout(uneven, CLUSTER, CLUSTER.machine) is not None
    assert idling_layout(uneven, small, small.machine) is None


def test_one_rank_has_nobody_to_wait_for() -> None:
    alone = load_resolved(
        "pretrain/tiny", ("parallel.processes=1", "parallel.expert=1"), CLUSTER.machine
    )
    assert idling_layout(alone, CLUSTER, CLUSTER.machine) is None


@pytest.mark.parametrize("layout", ["Et|(tt|)*30mL", "null"])
def test_the_full_recipe_is_divided_as_evenly_as_can_be(layout: str) -> None:
    """And as many layers to each stage are not: the head has none to spare."""
    cluster = load_cluster("h800")
    recipe = load_resolved("pretrain/deepseek-v3", (f"pipeline.layout={layout}",), cluster.machine)
    found = idling_layout(recipe, cluster, cluster.machine)
    if layout != "null":
        assert found is None
    else:
        assert found is not None
        assert found.seconds > 1.2 * found.balanced_seconds
        assert found.balanced == "Et|(tt|)*30mL"
        page = (Path(__file__).parents[2] / "docs" / "rehearsal.md").read_text(encoding="utf-8")
        said = of_layout(found)
        assert f"{said.sentence} ({said.way_out})" in " ".join(page.split())
