"""What was rehearsed: ranks that took a step, and pipelines whose messages were posted."""

from dataclasses import dataclass

from dsv3_plugin.planner.plan import MemoryPart, RankPlan
from dsv3_plugin.rehearsal.cases import StepCase
from dsv3_plugin.rehearsal.report import RankReport


@dataclass(frozen=True)
class SteppedRank:
    """A rank in one of the steps.

    Attributes:
        case: the step.
        report: what the child found.
        planned: what the planner says of its place in the pipeline.
        card: bytes of its device.
        tokens: of a micro-batch. message: bytes that stages send each other of it.
    """

    case: StepCase
    report: RankReport
    planned: RankPlan
    card: int
    tokens: int
    message: int

    @property
    def memory(self) -> dict[MemoryPart, int]:
        """Part → bytes at the fullest moment; of context, NCCL and workspaces, the plan's."""
        return self.report.memory | {"allocator": self.planned.memory_bytes.get("allocator", 0)}

    @property
    def total(self) -> int:
        """Bytes at the fullest moment."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class SteppedPipeline:
    """The messages of all ranks of a pipeline in one of the steps.

    Attributes:
        case: the step.
        report: what the child found of them.
    """

    case: StepCase
    report: RankReport
