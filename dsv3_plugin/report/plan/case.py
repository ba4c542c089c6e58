"""What is shown of one recipe or model: its counts, and its plan where it has a cluster."""

from dataclasses import dataclass

from dsv3_plugin.planner.counts import FlopCounts, ParameterCounts
from dsv3_plugin.planner.plan import Plan


@dataclass(frozen=True)
class Case:
    """A recipe or a model, as it was asked for.

    Attributes:
        name: its name and its overrides, as written.
        plan: None where no cluster is named.
        balanced: the plan with experts evenly loaded, where `plan` is of others.
    """

    name: str
    parameters: ParameterCounts
    flops: FlopCounts
    plan: Plan | None = None
    balanced: Plan | None = None
