"""What measured steps say of a cluster, for people and programs."""

import io
import json
from dataclasses import replace

from dsv3_plugin.planner.calibration.fit import Calibration, Constant, Residual
from dsv3_plugin.planner.calibration.measured import Measured
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.report.plan.calibration import (
    calibration_mapping,
    calibration_tables,
    yaml_lines,
)
from dsv3_plugin.report.plan.case import Case
from dsv3_plugin.report.plan.page import page
from dsv3_plugin.terminal.console import Console
from tests.plans import cluster, plan


def calibration(**changes: object) -> Calibration:
    told = cluster().model_dump(mode="json")
    source = "fitted to 2 measured steps between 0.375 and 1.000; before: 0.75"
    told["efficiency"]["gemm_bf16"] = {"value": 0.6, "source": source}
    step = Measured("batch 16", load_recipe("pretrain/tiny"), cluster(), 16, 2.0, steps=20)
    found = Calibration(
        cluster=Cluster.model_validate(told),
        constants=(Constant("gemm_bf16", 0.75, 0.6, 0.375, 1.0),),
        factors={"gemm_bf16": 0.8},
        residuals=(
            Residual(step, before=1.5, predicted=2.1),
            Residual(replace(step, name="batch\x1b[2J 32", batch=32, seconds=4.0), 3.0, 3.9),
        ),
        notes=("two steps say of one efficiency at most",),
    )
    return replace(found, **changes)


def shown(found: Calibration) -> str:
    screen = io.StringIO()
    Console(screen, width=80).print(calibration_tables(found))
    return screen.getvalue()


def test_constants_have_bounds_and_steps_their_residuals():
    lines = [line.split() for line in shown(calibration()).splitlines()]
    assert ["gemm_bf16", "0.750", "0.600", "0.375", "to", "1.000"] in lines
    assert ["batch", "16", "2.000", "1.500", "2.100", "+5.0%"] in lines
    assert ["batch\\x1b[2J", "32", "4.000", "3.000", "3.900", "-2.5%"] in lines
    text = shown(calibration())
    assert "made-up, calibrated by 2 measured steps" in text
    assert "two steps say of one efficiency at most" in text
    assert "by one measured step" in shown(calibration(residuals=calibration().residuals[:1]))


def test_the_lines_for_a_file_are_read_back_as_they_are_meant():
    found = calibration()
    told = yaml_text.parse(yaml_lines(found), "lines")
    described = cluster().model_dump(mode="json")
    described["efficiency"] |= told["efficiency"]
    assert Cluster.model_validate(described) == found.cluster
    text = " ".join(shown(found).split())
    assert "for the file of made-up: efficiency: gemm_bf16: value: 0.6 source:" in text


def test_json_has_every_step():
    told = calibration_mapping(calibration())
    assert json.loads(json.dumps(told)) == told
    assert told["constants"] == [
        {"name": "gemm_bf16", "before": 0.75, "value": 0.6, "low": 0.375, "high": 1.0}
    ]
    first, _ = told["residuals"]
    assert first["error"] == 2.1 / 2.0 - 1
    assert (first["batch"], first["steps"], first["measured_seconds"]) == (16, 20, 2.0)


def test_the_page_has_it_too():
    model = load_recipe("pretrain/tiny").model
    text = page([Case("a", model, 256, plan(), calibration=calibration())])
    assert "Calibration" in text
    assert "-2.5%" in text
    assert "Two steps say of one efficiency at most." in text
