"""Efficiencies fitted to measured steps."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.calibration.fit import calibrate, predict, scaled
from dsv3_plugin.planner.calibration.measured import Measured
from dsv3_plugin.planner.cluster import Cluster, load_cluster
from dsv3_plugin.recipe.load import load_recipe

H100, H800, CPU = (load_cluster(name) for name in ("h100", "h800", "cpu"))
BF16 = load_recipe("pretrain/tiny", ["precision.dtype=bf16"])


def rows(times: list[float], cluster: Cluster = H100) -> list[Measured]:
    return [
        Measured(name=f"step {i}", recipe=BF16, cluster=cluster, batch=16 * (i + 1), seconds=time)
        for i, time in enumerate(times)
    ]


def parts(products: list[float], moved: list[float]):
    """A step's time as products and bytes: each row has its seconds of either at full peak."""

    def seconds(row: Measured, cluster: Cluster) -> float:
        row_number = row.batch // 16 - 1
        efficiency = cluster.efficiency
        return (
            products[row_number] / efficiency.gemm_bf16.value
            + moved[row_number] / efficiency.memory.value
        )

    return seconds


def measured_at(factors: dict[str, float], seconds) -> list[Measured]:
    """Rows that took what they take with these factors."""
    unknown = rows([1.0, 1.0, 1.0, 1.0])
    cluster = scaled(H100, factors)
    return [replace(row, seconds=seconds(row, cluster)) for row in unknown]


def test_two_shares_are_found_again():
    seconds = parts([4, 1, 2, 8], [1, 2, 1, 1])
    truth = {"gemm_bf16": 0.8, "memory": 0.9}
    found = calibrate(H100, measured_at(truth, seconds), seconds)
    assert [constant.name for constant in found.constants] == ["gemm_bf16", "memory"]
    assert found.factors == pytest.approx(truth, rel=1e-4)
    efficiency = found.cluster.efficiency
    assert efficiency.gemm_bf16.value == pytest.approx(0.8 * 0.8, rel=1e-4)
    assert efficiency.memory.value == pytest.approx(0.9 * 0.89, rel=1e-4)
    assert all(abs(residual.error) < 1e-4 for residual in found.residuals)
    assert all(residual.before < residual.step.seconds for residual in found.residuals)
    assert efficiency.memory.source == (
        "fitted to 4 measured steps between 0.445 and 1.000; before: 0.89"
    )
    assert efficiency.network == H100.efficiency.network
    assert found.notes == ()


def test_shares_that_the_steps_cannot_tell_apart_are_not_fitted():
    """All steps are alike but for their size: one constant says all that they say."""
    seconds = parts([1, 2, 4, 8], [1, 2, 4, 8])
    found = calibrate(H100, measured_at({"gemm_bf16": 0.7}, seconds), seconds)
    assert [constant.name for constant in found.constants] == ["gemm_bf16"]
    assert "gemm_bf16 alone is fitted" in found.notes[0]


@pytest.mark.parametrize("number", [1, 2])
def test_few_steps_say_little(number):
    seconds = parts([4, 1, 2, 8], [1, 2, 1, 1])
    few = measured_at({"gemm_bf16": 0.9}, seconds)[:number]
    found = calibrate(H100, few, seconds)
    assert found.factors == pytest.approx({"gemm_bf16": 0.9}, rel=1e-4)
    assert "of one efficiency at most" in found.notes[0]


def test_no_share_leaves_its_bounds():
    """Steps five times too long, and too short: the shares end at their bounds, and say so."""
    seconds = parts([4, 1, 2, 8], [1, 2, 1, 1])
    for factor, gemm, memory in ((5.0, 0.4, 0.445), (0.2, 1.0, 1.0)):
        long = [replace(row, seconds=row.seconds * factor) for row in measured_at({}, seconds)]
        found = calibrate(H100, long, seconds)
        efficiency = found.cluster.efficiency
        assert efficiency.gemm_bf16.value == pytest.approx(gemm)
        assert efficiency.memory.value == pytest.approx(memory)
        assert len(found.notes) == 2
        assert all("ended at its bound" in note for note in found.notes)
        assert all(abs(residual.error) > 0.5 for residual in found.residuals)


def test_never_a_constant_per_row():
    """Four steps that no two shares explain keep their residuals."""
    seconds = parts([4, 1, 2, 8], [1, 2, 1, 1])
    exact = measured_at({}, seconds)
    scattered = [
        replace(row, seconds=row.seconds * by)
        for row, by in zip(exact, (0.8, 1.2, 1.25, 1.1), strict=True)
    ]
    found = calibrate(H100, scattered, seconds)
    assert len(found.constants) == 2
    assert max(abs(residual.error) for residual in found.residuals) > 0.1


def test_named_shares_of_devices_that_err_alike():
    """Rows of two files: each one's own share times the same factor."""
    seconds = parts([4, 1, 2, 8], [1, 2, 1, 1])
    truth = {"gemm_bf16": 0.9}
    mixed = [
        replace(row, cluster=cluster, seconds=seconds(row, scaled(cluster, truth)))
        for row, cluster in zip(rows([1.0] * 4), (H100, H800, H100, H800), strict=True)
    ]
    found = calibrate(H800, mixed, seconds, names=["gemm_bf16"])
    assert found.factors == pytest.approx(truth, rel=1e-4)
    assert found.cluster.efficiency.gemm_bf16.value == pytest.approx(0.9 * 0.8, rel=1e-4)


def test_a_format_that_the_device_lacks():
    fp8 = load_recipe("pretrain/deepseek-v3")
    row = Measured(name="x", recipe=fp8, cluster=CPU, batch=15360, seconds=1.0)
    with pytest.raises(UserError, match="'x' computes in FP8, which one x86-64 core with AVX-512"):
        calibrate(CPU, [row], predict)


def test_the_planners_own_steps():
    """Steps that the planner itself predicts of a slower cluster give that cluster."""
    recipe = load_recipe("pretrain/tiny")
    slower = scaled(CPU, {"gemm_fp32": 0.8})
    steps = [Measured(f"batch {batch}", recipe, CPU, batch, 0.0) for batch in (8, 16, 32)]
    steps = [replace(row, seconds=predict(row, slower)) for row in steps]
    found = calibrate(CPU, steps)
    assert found.constants[0].name == "gemm_fp32"
    assert found.residuals[-1].predicted == pytest.approx(
        found.residuals[-1].step.seconds, rel=1e-3
    )
    assert found.factors["gemm_fp32"] == pytest.approx(0.8, rel=0.02)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.2, 5.0), min_size=3, max_size=4))
def test_a_fit_is_never_worse_than_the_file(by):
    seconds = parts([4, 1, 2, 8], [1, 2, 1, 1])
    exact = measured_at({}, seconds)
    scattered = [
        replace(row, seconds=row.seconds * factor) for row, factor in zip(exact, by, strict=False)
    ]
    found = calibrate(H100, scattered, seconds)

    def misfit(predicted: list[float]) -> float:
        pairs = zip(predicted, scattered, strict=True)
        return sum(math.log(seconds / row.seconds) ** 2 for seconds, row in pairs)

    after = misfit([residual.predicted for residual in found.residuals])
    assert after <= misfit([residual.before for residual in found.residuals]) + 1e-9
    assert all(constant.low <= constant.value * 1.000001 for constant in found.constants)
    assert all(constant.value <= constant.high * 1.000001 for constant in found.constants)


def test_steps_that_no_efficiency_explains():
    """A run of a laptop is none of a cluster, and milliseconds are no seconds."""
    (right,) = measured_at({}, parts([4, 1, 2, 8], [1, 2, 1, 1]))[:1]
    for wrong in (0.001, 1000.0):
        with pytest.raises(UserError, match=r"'step 0' takes .* no efficiency explains that"):
            calibrate(
                H100,
                [replace(right, seconds=wrong * right.seconds)],
                parts([4, 1, 2, 8], [1, 2, 1, 1]),
            )
