"""What is to be said of ranks that took a step: each by itself, and all together."""

from collections.abc import Iterator, Sequence

from dsv3_plugin.numbers import bytes_text, figure_text
from dsv3_plugin.planner.idling import IdlingLayout
from dsv3_plugin.planner.plan import MemoryPart
from dsv3_plugin.rehearsal.cases import StepCase
from dsv3_plugin.rehearsal.collectives import unlike_collectives, unlike_groups, unlike_messages
from dsv3_plugin.rehearsal.replicas import unlike_sums
from dsv3_plugin.rehearsal.report import OF_OURS, Finding, RankReport
from dsv3_plugin.rehearsal.stepped import SteppedRank

PER_TOKEN = 29
"""Bytes of a token that a step keeps of every micro-batch, for each chunk that reads batches:
itself, its label and position as integers of 8 bytes, its weight in the loss as a number of 4, and
in one whether it is padding."""
UNPLANNED = 0.05
"""Of its states, what a rank may hold before its step beside or beyond them: as far as the plan has
to agree with a rehearsal, part by part. Upstream rounds buffers up to what ranks share evenly."""
UNLIKE = 0.01
"""Of what a micro-batch keeps of a stage, by which stages of like layers may differ: rows of
experts go up to multiples of 16 or 128."""

_PER_PARAMETER: dict[MemoryPart, str] = {"gradients": "gradients", "optimizer": "optimizer states"}
_OF_A_STEP: tuple[MemoryPart, ...] = ("activations", "logits", "dispatch_buffers")


def of_ranks(stepped: Sequence[SteppedRank]) -> Iterator[Finding]:
    """Of each rank by itself."""
    for rank in stepped:
        yield from rank.report.findings
        yield from _of_groups(rank)
        yield from _of_host(rank)
        yield from _of_states(rank)
        yield from _of_gradients(rank.report)
        yield from _of_answers(rank.report)
        yield from _of_memory(rank)


def between_ranks(stepped: Sequence[SteppedRank]) -> Iterator[Finding]:
    """Of ranks in the same step, as far as they came."""
    cases: dict[StepCase, list[SteppedRank]] = {}
    for rank in stepped:
        if rank.report.memory:
            cases.setdefault(rank.case, []).append(rank)
    for ranks in cases.values():
        reports = {rank.report.rank: rank.report for rank in ranks}
        yield from unlike_groups({rank: each.made_together for rank, each in reports.items()})
        yield from unlike_collectives(
            {rank: (*each.built_with, *each.collectives) for rank, each in reports.items()}
        )
        yield from unlike_messages({rank: each.forms for rank, each in reports.items()})
        yield from unlike_sums({rank: each.sums for rank, each in reports.items()})
        yield from _unlike_stages(ranks)


def of_layout(idling: IdlingLayout) -> Finding:
    """Of a layout that lets ranks wait: the run would run, and take longer."""
    longer = 100 * (idling.seconds / idling.balanced_seconds - 1)
    return Finding(
        f"pipeline rank {idling.rank} is busy {idling.of_mean:.2f} times as long as ranks are on "
        f"average, and the others wait for it: by the plan a step takes "
        f"{figure_text(idling.seconds)} s, {longer:.1f} % longer than the "
        f"{figure_text(idling.balanced_seconds)} s of the balanced layout",
        f"pipeline.layout=balanced, which is {idling.balanced} here",
        stops=False,
    )


def _of_groups(rank: SteppedRank) -> Iterator[Finding]:
    """What the plugin makes, beside what Megatron makes for as many ranks and starts with.

    Each making takes as long as the rendezvous answers, and NCCL keeps buffers for each group that
    is used. A rank that makes groups of others, too, soon makes more than it is in.
    """
    report = rank.report
    if report.groups_asked_here > report.megatrons_groups:
        yield Finding(
            f"rank {report.rank} has to take part in {report.groups_asked_here:,} makings of "
            f"process groups beside Megatron's, one after the other, and Megatron itself has it in "
            f"{report.megatrons_groups:,} groups",
            "pipeline.executor=upstream and dispatch.kind=alltoall make none of their own",
        )


def _of_host(rank: SteppedRank) -> Iterator[Finding]:
    """What the host waits for once or twice in a step is of the step, and of no micro-batch."""
    if rank.case.folded == 1:  # where nothing tells a micro-batch's from the step's
        return
    for where, times in rank.report.drained.items():
        if times >= max(3, rank.case.folded):
            yield Finding(
                f"the host of rank {rank.report.rank} waits for its device {times:,} times in a "
                f"step of {rank.case.folded} micro-batches, in {where}: what it queued runs out, "
                "and other ranks wait with it",
                "a copy to pinned memory on a stream beside, and an event to wait for",
            )


def _of_states(rank: SteppedRank) -> Iterator[Finding]:
    """What a rank holds before it begins a step, against what its parameters need."""
    states, planned = rank.report.states, rank.planned.memory_bytes
    for part, name in _PER_PARAMETER.items():
        held, needed = states.get(part, 0), planned.get(part, 0)
        if held > (1 + UNPLANNED) * needed:
            yield Finding(
                f"rank {rank.report.rank} holds {bytes_text(held)} of {name}, and the parameters "
                f"of its place need {bytes_text(needed)}",
                f"leave out what megatron_args adds to the planned; {OF_OURS}",
            )
    beside = sum(size for part, size in states.items() if part in _OF_A_STEP)
    if beside > UNPLANNED * sum(states.values()):
        yield Finding(
            f"rank {rank.report.rank} holds {bytes_text(beside)} before its step that are neither "
            "weights nor gradients nor optimizer states",
            f"leave out what megatron_args adds to the planned; {OF_OURS}",
        )


def _of_gradients(report: RankReport) -> Iterator[Finding]:
    for names, what, way_out in (
        (
            report.without_gradient,
            "is given no gradient in a step",
            "leave out what adds it to the model, or freeze it; with pipeline.executor=upstream "
            "none of our executor is in the step",
        ),
        (
            report.rounded,
            "has its gradient added up in fewer bits than FP32 has, where what a micro-batch gives "
            "is lost beside what the others gave",
            "leave out what megatron_args says of gradients",
        ),
        (
            report.overwritten,
            "has its gradient overwritten by a later micro-batch",
            "megatron_args.overlap-grad-reduce=false; with pipeline.executor=upstream none of our "
            "executor is in the step",
        ),
    ):
        if names:
            first, *rest = names
            more = f", and so with {len(rest):,} more parameters" if rest else ""
            yield Finding(f"on rank {report.rank} {first} {what}{more}", f"{way_out}; {OF_OURS}")


def _of_answers(report: RankReport) -> Iterator[Finding]:
    """What an engine keeps when it has given its cache back, and what it has of weights."""
    engine = report.answered
    if engine is None:
        return
    if engine.left > UNPLANNED * sum(report.states.values()):
        yield Finding(
            f"rank {report.rank} keeps {bytes_text(engine.left)} of a round of answers in its step",
            OF_OURS,
        )
    if engine.handed_over > 0:
        yield Finding(
            f"the engine of rank {report.rank} has {bytes_text(engine.handed_over)} of weights "
            "beside those in training, which can be older",
            OF_OURS,
        )


def _of_memory(rank: SteppedRank) -> Iterator[Finding]:
    report, case = rank.report, rank.case
    if not report.memory:
        return
    later = report.growth * (case.micro_batches - case.folded)
    if report.growth > PER_TOKEN * rank.tokens * max(1, len(rank.planned.stages)):
        yield Finding(
            f"rank {report.rank} keeps {bytes_text(report.growth)} of every micro-batch after its "
            f"backward: {bytes_text(report.growth * case.micro_batches)} at the end of a step of "
            f"{case.micro_batches}",
            "with pipeline.executor=upstream none of our executor is in the step; " + OF_OURS,
        )
    if rank.total + later > rank.card:
        yield Finding(
            f"rank {report.rank} needs {bytes_text(rank.total + later)} in {case.schedule}, and "
            f"its device has {bytes_text(rank.card)}",
            "recompute more, or divide otherwise: `dsv3 plan --search` finds how",
        )
    saving = rank.planned.moments.get("saving", 0)
    if saving > rank.card >= rank.total + later:
        yield Finding(
            f"rank {report.rank} needs {bytes_text(saving)} while it saves, by the plan, and its "
            f"device has {bytes_text(rank.card)}",
            "let the hosts gather what is saved: leave out "
            "megatron_args.distrib-optim-fully-reshardable-mem-efficient",
        )


def _unlike_stages(ranks: Sequence[SteppedRank]) -> Iterator[Finding]:
    """Stages of like layers that keep unlike amounts of a micro-batch: the first two."""
    kept: dict[object, tuple[int, int]] = {}
    for rank in ranks:
        for stage, size in zip(rank.planned.stages, rank.report.kept, strict=False):
            other, expected = kept.setdefault(stage, (rank.report.rank, size))
            # What is sent is held by the one stage or by the other.
            if abs(size - expected) > UNLIKE * max(size, expected) + rank.message:
                yield Finding(
                    f"stages of like layers keep unlike amounts of a micro-batch: "
                    f"{bytes_text(expected)} on rank {other}, {bytes_text(size)} on rank "
                    f"{rank.report.rank}",
                    "recompute the same in all layers, without what megatron_args says of it; "
                    + OF_OURS,
                )
                return
