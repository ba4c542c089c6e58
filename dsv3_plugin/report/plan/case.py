"""What is shown of one recipe or model: its counts, and its plan where it is a recipe."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from dsv3_plugin.planner.counts import (
    FlopCounts,
    ParameterCounts,
    flops_per_token,
    parameter_counts,
)
from dsv3_plugin.planner.plan import Plan
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.schedules.timeline import Timeline

if TYPE_CHECKING:
    from dsv3_plugin.planner.calibration.fit import Calibration


@dataclass(frozen=True)
class Case:
    """A recipe or a model, as it was asked for.

    Attributes:
        name: its name and its overrides, as written.
        model: what is counted.
        seq_length: tokens of a sequence, which attention's operations depend on.
        plan: None where only counts were asked for, or can be had.
        balanced: the plan with experts evenly loaded, where `plan` is of others.
        calibration: what made the plan's cluster of that in its file, if steps were measured.
        timeline: the pipeline of the longest phase's last step, if it is to be drawn.
    """

    name: str
    model: ModelConfig
    seq_length: int
    plan: Plan | None = None
    balanced: Plan | None = None
    calibration: "Calibration | None" = None
    timeline: Timeline | None = None

    @cached_property
    def parameters(self) -> ParameterCounts:
        return parameter_counts(self.model)

    @cached_property
    def flops(self) -> FlopCounts:
        return flops_per_token(self.model, self.seq_length)
