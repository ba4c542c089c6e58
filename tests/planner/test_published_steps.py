"""The steps that were published, as the cluster files have them: fitted to nothing."""

import math
from pathlib import Path
from statistics import median

import pytest

from dsv3_plugin.planner.calibration.fit import predict
from dsv3_plugin.planner.calibration.measured import Measured, read_rows
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.counts import flops_per_token

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "published_steps.yaml"


@pytest.fixture(scope="module")
def steps() -> list[Measured]:
    h100 = load_cluster("h100")
    return [
        row.measured(f"row {number}", PUBLISHED.parent, h100)
        for number, row in enumerate(read_rows(PUBLISHED), start=1)
    ]


def errors(steps: list[Measured]) -> list[float]:
    return [abs(predict(step, step.cluster) / step.seconds - 1) for step in steps]


@pytest.mark.parametrize("clusters", [("h800", "h100"), ("b200", "gb200", "gb300")])
def test_no_step_is_needed_to_predict_steps(steps, clusters):
    """Each generation's median error stays below 8 %, and far below that of a constant MFU."""
    own = [step for step in steps if step.cluster.name in clusters]
    assert len(own) == 7
    found = errors(own)
    assert median(found) < 0.08
    assert max(found) < 0.36  # attention in FP8, see docs/benchmarks.md
    utilised = [mfu(step) for step in own]
    constant = []
    for i, share in enumerate(utilised):
        others = utilised[:i] + utilised[i + 1 :]
        mean = math.exp(sum(map(math.log, others)) / len(others))
        constant.append(abs(share / mean - 1))
    assert median(found) < median(constant) / 3


def mfu(step: Measured) -> float:
    recipe, peaks = step.recipe, step.cluster.peak_tflops
    flops = flops_per_token(recipe.model, recipe.data.seq_length).total
    tokens = step.batch * recipe.data.seq_length
    peak = peaks.bf16 if recipe.precision.fp8 is None else peaks.fp8
    return flops * tokens / step.seconds / recipe.parallel.processes / peak / 1e12
