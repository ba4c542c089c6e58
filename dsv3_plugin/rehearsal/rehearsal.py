"""A rehearsal: the ranks that were stepped, what the plan says of them, and what is to be said."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.idling import idling_layout
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.planner.plan import Plan, RankPlan
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rehearsal.cases import StepCase, shortest, step_cases
from dsv3_plugin.rehearsal.children import Devices, rehearsed
from dsv3_plugin.rehearsal.findings import between_ranks, of_layout, of_ranks
from dsv3_plugin.rehearsal.report import Depth, Finding, RankReport, Request
from dsv3_plugin.rehearsal.stepped import SteppedPipeline, SteppedRank
from dsv3_plugin.rehearsal.te.installed import of_another_version, te_python


@dataclass(frozen=True)
class Rehearsal:
    """What came of it.

    Attributes:
        name: the recipe's.
        processes: ranks of its run.
        cluster: where it would run.
        device: what stood for a GPU.
        plan: the planner's, with the same imbalance.
        ranks: those that were asked for, in each of the steps.
        pipelines: where our executor runs one, its steps.
        findings: all of them, those that stop first.
    """

    name: str
    processes: int
    cluster: Cluster
    device: str
    plan: Plan
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
        company: ranks that take the shortest step, for what others do at the same time.
        imbalance: load of each rank's experts over the mean.
        missing: what a run would miss here and a rehearsal does without, a sentence each.
    """

    name: str
    overrides: tuple[str, ...]
    cluster_name: str
    cluster: Cluster
    machine: Machine
    recipe: Recipe
    ranks: tuple[int, ...]
    company: tuple[int, ...]
    imbalance: float
    missing: tuple[str, ...] = ()

    @property
    def children(self) -> int:
        """Processes that it takes."""
        cases = step_cases(self.recipe)
        return 1 + len(list(self.steps(cases))) + self.has_pipeline * len(cases)

    def steps(self, cases: Sequence[StepCase]) -> Iterator[tuple[int, StepCase]]:
        """Which ranks take which steps."""
        short = shortest(cases, self.recipe.parallel.pipeline)
        steps = [(rank, case) for case in cases for rank in self.ranks]
        yield from dict.fromkeys([*steps, *((rank, short) for rank in self.company)])

    def shows(self, rank: SteppedRank, cases: Sequence[StepCase]) -> bool:
        """Whether a rank is told of by itself: it did not only keep others company."""
        return rank.report.rank in self.ranks and rank.case in cases

    def stepped(self, plan: Plan, rank: int, case: StepCase, report: RankReport) -> SteppedRank:
        """A rank with what the plan says of it."""
        phase = next(phase for phase in plan.phases if phase.name == case.phase)
        parallel, training = self.recipe.parallel, self.recipe.training
        tokens = training.micro_batch_size * phase.seq_length
        width = {"bf16": 2, "fp32": 4}[self.recipe.precision.dtype]
        return SteppedRank(
            case,
            report,
            planned=phase.ranks[rank // (parallel.processes // parallel.pipeline)],
            card=self.cluster.memory_bytes,
            tokens=tokens,
            message=tokens * self.recipe.model.hidden_size * width,
        )

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
        stepping = list(wanted.steps(cases))
        requests = [wanted.request(rank, case, "step") for rank, case in stepping]
        if wanted.has_pipeline:
            requests += [wanted.request(0, case, "messages") for case in cases]
        reports = rehearsed(requests, devices, done)
        stepped = [
            wanted.stepped(plan, rank, case, report)
            for (rank, case), report in zip(stepping, reports, strict=False)
        ]
        pipelines = [
            SteppedPipeline(case, report)
            for case, report in zip(cases, reports[len(stepping) :], strict=False)
        ]
    findings = [
        *configuration.findings,
        *(_of_missing(sentence) for sentence in wanted.missing),
        *_of_devices(wanted, devices),
        *of_ranks(stepped),
        *between_ranks(stepped),
        *(finding for pipeline in pipelines for finding in pipeline.report.findings),
        *_of_layout(wanted),
    ]
    return Rehearsal(
        name=wanted.recipe.name,
        processes=wanted.recipe.parallel.processes,
        cluster=wanted.cluster,
        device=devices.kind,
        plan=plan,
        ranks=tuple(rank for rank in stepped if wanted.shows(rank, cases)),
        pipelines=tuple(pipelines),
        findings=tuple(sorted(dict.fromkeys(findings), key=lambda finding: not finding.stops)),
    )


def _of_missing(sentence: str) -> Finding:
    """Of texts: they may be on the cluster, and not where it is rehearsed."""
    what, _, way_out = sentence.rpartition(": ")
    return Finding(f"{what}, which a rehearsal does without", way_out, stops=False)


def _of_layout(wanted: Wanted) -> Iterator[Finding]:
    if wanted.ranks:
        run = (wanted.recipe, wanted.cluster, wanted.machine)
        idling = idling_layout(*run, wanted.imbalance)
        if idling is not None:
            yield of_layout(idling)


def _of_devices(wanted: Wanted, devices: Devices) -> Iterator[Finding]:
    if wanted.ranks and devices.lacking:
        yield Finding(
            f"tensors are on a device written in Python, since {devices.lacking}: memory is "
            "the same as over a CUDA runtime, and kernels are within 2 % of it",
            stops=False,
        )
    python = te_python() if wanted.ranks and wanted.needs_te_python else None
    if python is not None and (finding := of_another_version(python)) is not None:
        yield finding
