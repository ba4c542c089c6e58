"""A rehearsal: the ranks that were stepped, what the plan says of them, and what is to be said."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dsv3_plugin.machine import Machine
from dsv3_plugin.numbers import bytes_text
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.planner.plan import MemoryPart, Plan, RankPlan
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rehearsal.cases import StepCase, step_cases
from dsv3_plugin.rehearsal.children import Devices, rehearsed
from dsv3_plugin.rehearsal.collectives import unlike_collectives, unlike_groups
from dsv3_plugin.rehearsal.report import Depth, Finding, RankReport, Request

MOST_GROUPS = 128
"""Process groups that a rank may be in: NCCL gives each buffers and threads of its own."""
MOST_ASKED = 128
"""Groups that the plugin may have a rank make: it takes as long as the rendezvous answers."""


@dataclass(frozen=True)
class SteppedRank:
    """A rank in one of the steps.

    Attributes:
        case: the step.
        report: what the child found.
        planned: what the planner says of its place in the pipeline.
        card: bytes of its device.
    """

    case: StepCase
    report: RankReport
    planned: RankPlan
    card: int

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


@dataclass(frozen=True)
class Rehearsal:
    """What came of it.

    Attributes:
        name: the recipe's.
        processes: ranks of its run.
        cluster: where it would run.
        device: what stood for a GPU.
        plan: the planner's, with the same imbalance.
        configuration: of rank 0, checked alone.
        ranks: those that were stepped.
        pipelines: where our executor runs one, its steps.
        findings: all of them, those that stop first.
    """

    name: str
    processes: int
    cluster: Cluster
    device: str
    plan: Plan
    configuration: RankReport
    ranks: tuple[SteppedRank, ...]
    pipelines: tuple[SteppedPipeline, ...]
    findings: tuple[Finding, ...]

    @property
    def stepped(self) -> list[SteppedRank]:
        """The ranks whose step came to its end."""
        return [rank for rank in self.ranks if rank.report.memory]

    @property
    def would_run(self) -> bool:
        return not any(finding.stops for finding in self.findings)

    @property
    def slowest(self) -> dict[str, RankPlan]:
        """Schedule of each step that was rehearsed → of several places, the busiest."""
        phases = {phase.name: phase for phase in self.plan.phases if len(phase.ranks) > 1}
        cases = dict.fromkeys(step.case for step in (*self.ranks, *self.pipelines))
        return {case.schedule: phases[case.phase].slowest for case in cases if case.phase in phases}

    def waiting(self, rank: SteppedRank) -> float | None:
        """Of its whole step, the share in which a rank's place of the pipeline waits for messages.

        Between its first and its last computation; None where no messages were rehearsed, or they
        come to no end.
        """
        for pipeline in self.pipelines:
            messages = pipeline.report.messages
            if pipeline.case == rank.case and messages is not None and messages.makespan:
                return messages.waiting[rank.planned.pipeline_rank] / messages.makespan
        return None


@dataclass(frozen=True)
class Wanted:
    """What to rehearse.

    Attributes:
        name, overrides: as `dsv3 rehearse` got them.
        cluster_name: as `load_cluster` takes it.
        recipe: closed for the cluster.
        ranks: of the world; none: the configuration alone.
        imbalance: load of each of these ranks' experts over the mean.
    """

    name: str
    overrides: tuple[str, ...]
    cluster_name: str
    cluster: Cluster
    machine: Machine
    recipe: Recipe
    ranks: tuple[int, ...]
    imbalance: float

    @property
    def children(self) -> int:
        """Processes that it takes."""
        each = len(self.ranks) + self.has_pipeline
        return 1 + each * len(step_cases(self.recipe))

    @property
    def has_pipeline(self) -> bool:
        """Whether messages between stages are to be rehearsed: ranks are, and ours are theirs."""
        recipe = self.recipe
        return bool(self.ranks) and recipe.parallel.pipeline > 1 and recipe.executor == "ours"

    @property
    def needs_te_python(self) -> bool:
        """Whether the ranks' layers are Transformer Engine's, whose Python a step takes."""
        recipe, machine = self.recipe, self.machine
        return recipe.on_gpu(machine) and recipe.resolved_backend(machine) == "transformer_engine"

    def request(self, rank: int, case: StepCase, depth: Depth) -> Request:
        """What a child is told."""
        return Request(
            self.name,
            self.overrides,
            self.cluster_name,
            rank,
            case.micro_batches if depth == "messages" else case.folded,
            depth,
            self.imbalance,
        )


def rehearse(wanted: Wanted, devices: Devices, done: Callable[[], None]) -> Rehearsal:
    """Rehearse a recipe: its configuration, and then the steps of its ranks.

    Args:
        wanted: what.
        devices: what stands for a device.
        done: called after each child.
    """
    cases = step_cases(wanted.recipe)
    (configuration,) = rehearsed([wanted.request(0, cases[-1], "configuration")], devices, done)
    plan = make_plan(wanted.recipe, wanted.cluster, wanted.machine, wanted.imbalance)
    stepped: list[SteppedRank] = []
    pipelines: list[SteppedPipeline] = []
    if not any(finding.stops for finding in configuration.findings):
        pairs = [(rank, case) for case in cases for rank in wanted.ranks]
        requests = [wanted.request(*pair, "step") for pair in pairs]
        if wanted.has_pipeline:
            requests += [wanted.request(0, case, "messages") for case in cases]
        reports = rehearsed(requests, devices, done)
        stepped = [
            SteppedRank(
                case, report, _planned(plan, case, rank, wanted), wanted.cluster.memory_bytes
            )
            for (rank, case), report in zip(pairs, reports, strict=False)
        ]
        pipelines = [
            SteppedPipeline(case, report)
            for case, report in zip(cases, reports[len(pairs) :], strict=False)
        ]
    findings = [
        *configuration.findings,
        *_of_devices(wanted, devices),
        *_of_ranks(stepped),
        *_between_ranks(stepped),
        *(finding for pipeline in pipelines for finding in pipeline.report.findings),
    ]
    return Rehearsal(
        name=wanted.recipe.name,
        processes=wanted.recipe.parallel.processes,
        cluster=wanted.cluster,
        device=devices.kind,
        plan=plan,
        configuration=configuration,
        ranks=tuple(stepped),
        pipelines=tuple(pipelines),
        findings=tuple(sorted(dict.fromkeys(findings), key=lambda finding: not finding.stops)),
    )


def _planned(plan: Plan, case: StepCase, rank: int, wanted: Wanted) -> RankPlan:
    phase = next(phase for phase in plan.phases if phase.name == case.phase)
    parallel = wanted.recipe.parallel
    return phase.ranks[rank // (parallel.processes // parallel.pipeline)]


def _between_ranks(stepped: Sequence[SteppedRank]) -> Iterator[Finding]:
    """Of ranks in the same step, as far as they came."""
    cases: dict[StepCase, list[RankReport]] = {}
    for rank in stepped:
        if rank.report.memory:
            cases.setdefault(rank.case, []).append(rank.report)
    for reports in cases.values():
        yield from unlike_groups({report.rank: report.made_together for report in reports})
        yield from unlike_collectives(
            {report.rank: (*report.built_with, *report.collectives) for report in reports}
        )


def _of_devices(wanted: Wanted, devices: Devices) -> Iterator[Finding]:
    if wanted.ranks and devices.lacking:
        yield Finding(
            f"tensors are on a device written in Python, since {devices.lacking}: memory is "
            "the same as over a CUDA runtime, and kernels are within 2 % of it",
            stops=False,
        )


def _of_ranks(stepped: Sequence[SteppedRank]) -> Iterator[Finding]:
    for rank in stepped:
        yield from rank.report.findings
        number = rank.report.rank
        if rank.report.groups > MOST_GROUPS:
            yield Finding(
                f"rank {number} is in {rank.report.groups:,} process groups, and NCCL keeps "
                f"buffers for each: {MOST_GROUPS} are bearable"
            )
        if rank.report.groups_asked_here > MOST_ASKED:
            yield Finding(
                f"rank {number} has to take part in {rank.report.groups_asked_here:,} makings of "
                f"process groups beside Megatron's, one after the other: {MOST_ASKED} are bearable"
            )
        if rank.report.memory and rank.total > rank.card:
            yield Finding(
                f"rank {number} needs {bytes_text(rank.total)} in {rank.case.schedule}, and its "
                f"device has {bytes_text(rank.card)}",
                "recompute more, or divide otherwise: `dsv3 plan --search` finds how",
            )
