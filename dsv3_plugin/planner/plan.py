"""What a plan says: per phase of a run its time, its money, and the memory of every pipeline rank.

Parts have names, and each part is a number that a rehearsal or a run can be held against: bytes of
a rank by part and moment, seconds of a step by part, messages by link.
"""

from dataclasses import dataclass
from typing import Literal

from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.counts import FlopCounts, ParameterCounts
from dsv3_plugin.planner.journal import Kept
from dsv3_plugin.planner.stages import Stage

MemoryPart = Literal[
    "weights",
    "gradients",
    "optimizer",
    "fp8_copies",
    "activations",
    "dispatch_buffers",
    "logits",
    "saving",
    "cache",
    "allocator",
]
"""weights: parameters in the training's dtype, FP32 buffers of routers included. gradients: FP32.
optimizer: the rank's share of master weights and moments. fp8_copies: quantised weights and their
transposes. activations: kept from forward to backward, at the schedule's fullest moment, what one
layer works with meanwhile, and messages between stages. dispatch_buffers: of sends and receives.
logits: the head's, and what its loss keeps. saving: what a checkpoint gathers. cache: the latents
that an engine remembers of answers. allocator: CUDA context, NCCL, workspaces."""

Moment = Literal["step", "optimizer", "saving", "answering"]
"""step: forward and backward at their fullest. optimizer: its update, activations gone. saving: a
checkpoint being written. answering: the engine of a stage that answers, all answers about as long
as they may be."""

TimePart = Literal[
    "gemm",
    "attention",
    "elementwise",
    "quantise",
    "dispatch_nvlink",
    "dispatch_network",
    "tensor_parallel",
    "context_parallel",
    "pipeline",
    "data_parallel",
    "optimizer",
    "answering",
    "log_probs",
    "saving",
    "evaluation",
]
"""Where a step's seconds go, on the slowest rank; pipeline: waiting, the bubble and messages
included. answering: a step's part of a round of answers, at the least. log_probs: of forward passes
over them. What communication hides behind computation is not in it."""


@dataclass(frozen=True)
class RankPlan:
    """One pipeline rank, its stages together.

    Attributes:
        pipeline_rank: which.
        stages: what it holds, along the model; those of a second copy too.
        memory_bytes: part → bytes at the moment that needs most of this rank, in the order of
            `MemoryPart`.
        moments: moment → bytes of the rank in all.
        busy_seconds: time that it computes in a step.
        work: its computation over the mean of all ranks.
    """

    pipeline_rank: int
    stages: tuple[Stage, ...]
    memory_bytes: dict[MemoryPart, int]
    moments: dict[Moment, int]
    busy_seconds: float
    work: float

    @property
    def memory_total(self) -> int:
        """Bytes at the fullest moment."""
        return max(self.moments.values())


@dataclass(frozen=True)
class PhasePlan:
    """One phase of a run: a stretch of it with one sequence length and one way of batching.

    Attributes:
        name: what it is called ("batch 3072 to 15360").
        seq_length: tokens of a sequence.
        batch: sequences of its last step (a growing batch ends there).
        schedule: the pipeline schedule at that batch.
        steps, tokens: how many.
        step_seconds: of the last step; saving and evaluation spread over the steps.
        seconds: of the whole phase.
        time_by_part: seconds of that step by part.
        tokens_per_second_per_gpu: at the last step.
        mfu: model FLOPs (causal attention, nothing recomputed) over the peak of the format that
            most products use.
        gpu_hours, cost: of the whole phase.
        checkpoint_bytes: one checkpoint. checkpoints_written: how many.
        ranks: each pipeline rank.
    """

    name: str
    seq_length: int
    batch: int
    schedule: str
    steps: int
    tokens: int
    step_seconds: float
    seconds: float
    time_by_part: dict[TimePart, float]
    tokens_per_second_per_gpu: float
    mfu: float
    gpu_hours: float
    cost: float
    checkpoint_bytes: int
    checkpoints_written: int
    ranks: tuple[RankPlan, ...]

    @property
    def fullest(self) -> RankPlan:
        """The rank that needs most memory."""
        return max(self.ranks, key=lambda rank: rank.memory_total)

    @property
    def slowest(self) -> RankPlan:
        """The rank that computes longest."""
        return max(self.ranks, key=lambda rank: rank.busy_seconds)


@dataclass(frozen=True)
class Limit:
    """The tightest limit of a run.

    Attributes:
        fits: whether it fits.
        sentence: which limit, of which rank, how much of it.
        way_out: the nearest change with which it fits, as overrides (`training.micro_batch_size=1`)
            and a sentence; empty where it fits, or where nothing does.
    """

    fits: bool
    sentence: str
    overrides: tuple[str, ...] = ()
    way_out: str = ""


@dataclass(frozen=True)
class RoundPlan:
    """A round of answers, where a run has them.

    Attributes:
        answers: of a round. at_once: of them that an engine is asked for.
        tokens: of the longest answer.
        made: of it in a round, at the most.
        steps: that a round is trained on.
        seconds: that it takes at the least.
        cache_bytes: of latents, on the rank that has most.
        reference_bytes: of a reference, that this many a rank keeps on its host at the most; 0:
            there is none.
        weights_bytes: of the whole model: nothing of it is handed to our engine, all of it would be
            to a server elsewhere.
    """

    answers: int
    at_once: int
    tokens: int
    made: int
    steps: int
    seconds: float
    cache_bytes: int
    reference_bytes: int
    weights_bytes: int


@dataclass(frozen=True)
class Plan:
    """A recipe on a cluster, beforehand.

    Attributes:
        name: the recipe's.
        processes: ranks of the run, one to a GPU.
        imbalance: load of the busiest rank's experts over the mean, for which it is made.
        round: of answers that its own ranks make; None: there are none.
        kept: of answers on the disk, whoever makes them; None: a stage without them.
    """

    name: str
    cluster: Cluster
    processes: int
    parameters: ParameterCounts
    flops: FlopCounts
    phases: tuple[PhasePlan, ...]
    limit: Limit
    imbalance: float = 1.0
    round: RoundPlan | None = None
    kept: Kept | None = None

    @property
    def tokens(self) -> int:
        return sum(phase.tokens for phase in self.phases)

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def fullest(self) -> PhasePlan:
        """The phase with the rank that needs most memory."""
        return max(self.phases, key=lambda phase: phase.fullest.memory_total)

    @property
    def longest(self) -> PhasePlan:
        """The phase that takes most time."""
        return max(self.phases, key=lambda phase: phase.seconds)

    @property
    def gpu_hours(self) -> float:
        return sum(phase.gpu_hours for phase in self.phases)

    @property
    def cost(self) -> float:
        return sum(phase.cost for phase in self.phases)

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)
