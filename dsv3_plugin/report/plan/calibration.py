"""What measured steps say of a cluster: the fitted efficiencies, and what is left over."""

from typing import Any

from rich.console import Group
from rich.text import Text

from dsv3_plugin.errors import printable
from dsv3_plugin.numbers import figure_text
from dsv3_plugin.planner.calibration.fit import Calibration
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.report.plan.grid import Grid
from dsv3_plugin.terminal.console import styled


def calibration_mapping(found: Calibration) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "constants": [
            {
                "name": constant.name,
                "before": constant.before,
                "value": constant.value,
                "low": constant.low,
                "high": constant.high,
            }
            for constant in found.constants
        ],
        "residuals": [
            {
                "name": residual.step.name,
                "batch": residual.step.batch,
                "steps": residual.step.steps,
                "measured_seconds": residual.step.seconds,
                "predicted_seconds_before": residual.before,
                "predicted_seconds": residual.predicted,
                "error": residual.error,
            }
            for residual in found.residuals
        ],
        "notes": [*found.notes],
    }


def calibration_tables(found: Calibration) -> Group:
    """For people: constants, residuals, and the lines for a cluster's file."""
    cluster = printable(found.cluster.name)
    return Group(
        styled(f"{cluster}, calibrated by {_steps(found)}"),
        constants(found).table(),
        Text(),
        residuals(found).table(),
        Text(),
        *(Text(printable(note)) for note in found.notes),
        *([Text()] if found.notes else []),
        styled(f"for the file of {cluster}:"),
        *(Text(printable(line)) for line in yaml_lines(found).splitlines()),
    )


def constants(found: Calibration) -> Grid:
    """What was fitted, and within which bounds."""
    rows = tuple(
        (
            constant.name,
            f"{constant.before:.3f}",
            f"{constant.value:.3f}",
            f"{constant.low:.3f} to {constant.high:.3f}",
        )
        for constant in found.constants
    )
    return Grid(("efficiency", "before", "fitted", "bounds"), rows)


def residuals(found: Calibration) -> Grid:
    """Each measured step beside its prediction."""
    rows = tuple(
        (
            residual.step.name,
            figure_text(residual.step.seconds),
            figure_text(residual.before),
            figure_text(residual.predicted),
            f"{residual.error:+.1%}",
        )
        for residual in found.residuals
    )
    header = ("step", "measured\ns", "predicted\nbefore, s", "predicted\ns", "off by")
    return Grid(header, rows)


def yaml_lines(found: Calibration) -> str:
    """What stands in the cluster's file once it is calibrated."""
    efficiency = found.cluster.efficiency
    fitted = {
        constant.name: {
            "value": round(constant.value, 4),
            "source": getattr(efficiency, constant.name).source,
        }
        for constant in found.constants
    }
    return yaml_text.dump({"efficiency": fitted})


def _steps(found: Calibration) -> str:
    number = len(found.residuals)
    return "one measured step" if number == 1 else f"{number} measured steps"
