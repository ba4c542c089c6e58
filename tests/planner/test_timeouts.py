"""How long the shipped full recipes wait for a rank, against what their steps take by the plan."""

import pytest

from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.planner.resolve import load_resolved

STEPS = 5
"""Of the longest: what only the first does, and storage that stalls, fit in as well."""


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("pretrain/deepseek-v3", "h800"),
        ("pretrain/deepseek-v3-256", "h100"),
        ("extend/deepseek-v3-32k", "h800"),
        ("extend/deepseek-v3-128k", "h800"),
        ("sft/deepseek-v3", "h800"),
        ("rl/deepseek-v3", "h800"),
        ("rl/deepseek-r1-zero", "gb300"),
    ],
)
def test_a_rank_is_given_up_after_some_steps_and_sooner_than_at_the_start(recipe, name) -> None:
    cluster = load_cluster(name)
    run = load_resolved(recipe, (), cluster.machine)
    plan = make_plan(run, cluster, cluster.machine)
    step = max(phase.step_seconds for phase in plan.phases)
    assert STEPS * step <= run.pipeline.timeout <= 60 * run.parallel.timeout_minutes
