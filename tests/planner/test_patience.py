"""Times and intervals that were made for other steps."""

import pytest

from dsv3_plugin.planner.patience import unsuited
from dsv3_plugin.recipe.load import load_recipe


def said(step_seconds, *overrides):
    return list(unsuited(load_recipe("pretrain/deepseek-v3", overrides), step_seconds))


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


def test_a_lost_rank_costs_no_days():
    (sentence,) = said(183.0, "pipeline.timeout=960")
    assert "2d02h of work by its plan (checkpoint.interval 1,000)" in sentence
    assert sentence.endswith("every 2h30m is checkpoint.interval=49")
    assert said(183.0, "pipeline.timeout=960", "training.tokens=10B") == []


@pytest.mark.parametrize("step_seconds", [0.5, 1e5])
def test_one_process_waits_for_nobody(step_seconds):
    recipe = load_recipe("pretrain/tiny", ["parallel.processes=1", "parallel.expert=1"])
    assert not [one for one in unsuited(recipe, step_seconds) if "wait" in one]
