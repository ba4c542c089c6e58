"""Times and intervals that were made for other steps."""

import math

import pytest

from dsv3_plugin.numbers import time_text
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.counts import parameter_counts
from dsv3_plugin.planner.patience import unsuited
from dsv3_plugin.recipe.load import load_recipe


def said(step_seconds, *overrides, disk=10.7):
    cluster = load_cluster("h800").model_copy(update={"storage_gb_per_second": disk})
    recipe = load_recipe("pretrain/deepseek-v3", overrides)
    return list(unsuited(recipe, step_seconds, cluster, cluster.machine))


def test_what_suits_is_not_spoken_of():
    assert said(20.0) == []


def test_ranks_wait_for_several_steps():
    (sentence,) = said(183.0, "checkpoint.interval=50")
    assert (
        "no longer than 4m00s (pipeline.timeout): for 5 steps set pipeline.timeout=960" in sentence
    )
    assert said(183.0, "checkpoint.interval=50", "pipeline.timeout=960") == []
    (sentence,) = said(183.0, "checkpoint.interval=50", "pipeline.timeout=null")
    assert "no longer than 10m00s (parallel.timeout_minutes)" in sentence


def test_ranks_wait_until_a_checkpoint_is_read():
    """671 billion values and those of multi-token prediction, which has no embedding and no head of
    its own, of 14 bytes each: read by 256 nodes at once."""
    model = load_recipe("pretrain/deepseek-v3").model
    values = parameter_counts(model).total - 2 * model.vocab_size * model.hidden_size
    seconds = 14 * values / 256 / 0.05e9
    (sentence,) = said(20.0, disk=0.05)
    assert f", {time_text(seconds)} at the 0.05 GB/s of each node" in sentence
    assert "no longer than 10m00s then (parallel.timeout_minutes)" in sentence
    minutes = math.ceil(seconds / 30)
    assert sentence.endswith(f"for twice that set parallel.timeout_minutes={minutes}")
    assert said(20.0, f"parallel.timeout_minutes={minutes}", disk=0.05) == []


def test_a_lost_rank_costs_no_days():
    (sentence,) = said(183.0, "pipeline.timeout=960")
    assert "2d02h of work by its plan (checkpoint.interval 1,000)" in sentence
    assert sentence.endswith("every 2h30m is checkpoint.interval=49")
    assert said(183.0, "pipeline.timeout=960", "training.tokens=10B") == []


@pytest.mark.parametrize("step_seconds", [0.5, 1e5])
def test_one_process_waits_for_nobody(step_seconds):
    recipe = load_recipe("pretrain/tiny", ["parallel.processes=1", "parallel.expert=1"])
    cluster = load_cluster("cpu")
    said = unsuited(recipe, step_seconds, cluster, cluster.machine)
    assert not [one for one in said if "wait" in one]
