"""What is asked of a rehearsal and what it says: parent and child share it as JSON. No torch."""

from dataclasses import dataclass, field
from typing import Literal

from dsv3_plugin.planner.plan import MemoryPart, Moment

Depth = Literal["configuration", "step", "messages"]
"""configuration: recipe → upstream's finished configuration, checked. step: the rank's groups,
chunks, gradient buffers and optimizer, and a training step as well. messages: those of all ranks of
a pipeline in a step, and nothing else."""

OF_OURS = "without megatron_args it is a fault of dsv3: report it with what --json says"
"""The way out of what no key of a recipe should bring about."""

OF_TWO = ("send", "recv", "recv_any_source")
"""What torch.distributed calls messages to one, without the mark of what it writes to."""


@dataclass(frozen=True)
class Finding:
    """One thing that a rehearsal noticed.

    Attributes:
        sentence: what it is.
        way_out: the key that changes it, or what to do; empty where nothing is to be done.
        stops: whether the run would not run.
        whole: all that was said, where the sentence is a part of it.
        of_run: whether it is the run that has it, and not its rehearsal, which came to no end.
    """

    sentence: str
    way_out: str = ""
    stops: bool = True
    whole: str = ""
    of_run: bool = True

    @property
    def text(self) -> str:
        """Both, without a full stop."""
        return f"{self.sentence} ({self.way_out})" if self.way_out else self.sentence


@dataclass(frozen=True)
class Request:
    """What one child is to rehearse.

    Attributes:
        recipe, overrides: what `dsv3 rehearse` was given.
        cluster: the name or file of the cluster.
        rank: which rank of the world to be.
        micro_batches: of the step.
        depth: how far to go.
        imbalance: load of this rank's experts over the mean.
    """

    recipe: str
    overrides: tuple[str, ...]
    cluster: str
    rank: int
    micro_batches: int
    depth: Depth = "step"
    imbalance: float = 1.0


@dataclass(frozen=True)
class Messages:
    """What the ranks of a pipeline post in a step.

    Attributes:
        findings: what is wrong with it.
        communicators: that carry messages, of the rank that has the most.
        messages, batches: how many, of all ranks.
        makespan: of the step with its messages as they were posted, in the unit of the costs; None
            where it would not end.
        ideal: the same where each message travels for itself.
        waiting: per rank, time between its first and its last computation that it does not compute.
    """

    findings: tuple[Finding, ...]
    communicators: int
    messages: int
    batches: int
    makespan: float | None
    ideal: float
    waiting: tuple[float, ...]


@dataclass(frozen=True)
class Issued:
    """One collective as a rank issued it.

    Attributes:
        group: global ranks of its members.
        operation: what torch.distributed calls it.
        bytes: what it was given; of objects nought.
        twin: which of the groups with these members, as the rank came to be in them.
        waits: whether what the rank computes next comes after it.
        said: of objects, what the rank itself said, in short; of messages to one, their form.
    """

    group: tuple[int, ...]
    operation: str
    bytes: int
    twin: int = 0
    waits: bool = True
    said: str = ""

    @property
    def to_one(self) -> bool:
        """Whether it is a message to one, or from one."""
        return self.operation.rstrip("_") in OF_TWO


@dataclass(frozen=True)
class Operations:
    """What a step launched.

    Attributes:
        kernels: how many operations compute or move anything.
        bytes: read and written by them.
        by_name: name → (how many, bytes).
    """

    kernels: int
    bytes: int
    by_name: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Answered:
    """The engine of a rank at its fullest, in a round of answers.

    Attributes:
        memory: part → bytes, the rank's states included.
        handed_over: bytes of weights that it made beside those in training.
        left: bytes that it kept when it had given its cache back.
    """

    memory: dict[MemoryPart, int]
    handed_over: int
    left: int


@dataclass(frozen=True)
class RankReport:
    """What the rehearsal of one rank found.

    Attributes:
        rank: in the world.
        pipeline_rank: in its pipeline.
        findings: what is to be said of it.
        broke_off: whether the child ended before it had a report; the findings say by what.
        groups: process groups that it is in; megatrons_groups: those that the plugin did not make.
        groups_asked_here: how many the plugin had it help to make, others' groups among them.
        made_together: the groups that all ranks of the world make at a time, in order.
        states: part → bytes after the rank was built (weights, gradients, optimizer, fp8_copies).
        memory: part → bytes at the fullest moment, of the step or of the optimizer, those included.
        moments: moment → bytes at its fullest.
        answered: the engine's part, where the run has one.
        operations: of the step.
        kept: bytes that a micro-batch keeps of each stage here, along the model.
        growth: bytes that each micro-batch left behind for good.
        sums: parameter → the groups over which its gradient was summed in the step.
        without_gradient: parameters that train, and whose gradient nothing in the step wrote.
        overwritten: those whose gradient lost what the step had written there before.
        rounded: those whose gradient is added up in fewer bits than FP32 has.
        synchronisations: where the host waited for the device → how often, in the step.
        drained: those where it waited for all that it had queued, and for no event of it.
        collectives: of the step, in order; built_with: those before it.
        forms: in which it exchanged messages with other stages in the step, each once.
        messages: of all ranks of the pipeline, where those were asked for.
    """

    rank: int
    pipeline_rank: int
    findings: tuple[Finding, ...] = ()
    broke_off: bool = False
    groups: int = 0
    megatrons_groups: int = 0
    groups_asked_here: int = 0
    made_together: tuple[str, ...] = ()
    states: dict[MemoryPart, int] = field(default_factory=dict)
    memory: dict[MemoryPart, int] = field(default_factory=dict)
    moments: dict[Moment, int] = field(default_factory=dict)
    answered: Answered | None = None
    operations: Operations | None = None
    kept: tuple[int, ...] = ()
    growth: int = 0
    sums: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    without_gradient: tuple[str, ...] = ()
    overwritten: tuple[str, ...] = ()
    rounded: tuple[str, ...] = ()
    synchronisations: dict[str, int] = field(default_factory=dict)
    drained: dict[str, int] = field(default_factory=dict)
    built_with: tuple[Issued, ...] = ()
    collectives: tuple[Issued, ...] = ()
    forms: tuple[str, ...] = ()
    messages: Messages | None = None
