"""What is said of a rehearsal, in sentences."""

from dsv3_plugin.numbers import figure_text
from dsv3_plugin.planner.plan import RankPlan
from dsv3_plugin.rehearsal.rehearsal import Rehearsal
from dsv3_plugin.rehearsal.report import Finding, Messages


def sentence(finding: Finding) -> str:
    """A finding with its way out."""
    return f"{'✗' if finding.stops else '·'} {finding.text}."


def where(rehearsal: Rehearsal) -> str:
    """What was rehearsed, and on what."""
    return (
        f"{rehearsal.name} on {rehearsal.processes:,} × {rehearsal.cluster.gpu}; "
        f"rehearsed on {rehearsal.device}."
    )


def in_time(schedule: str, messages: Messages) -> str:
    """How long the pipeline takes with its messages as NCCL has them."""
    told = (
        f"{schedule}: {messages.messages:,} messages in {messages.batches:,} batches, for which a "
        f"rank has up to {messages.communicators} process groups"
    )
    if messages.makespan is None:
        return f"{told}."
    longer = 100 * (messages.makespan / messages.ideal - 1)
    return (
        f"{told}; {figure_text(messages.makespan)} s, {longer:.2f} % longer than if none waited "
        "for another."
    )


def in_the_end(rehearsal: Rehearsal) -> str:
    """The verdict in one sentence."""
    stopping = [finding for finding in rehearsal.findings if finding.stops]
    if any(finding.of_run for finding in stopping):
        return "It would not run."
    if stopping:
        return "It was not rehearsed to its end."
    if not rehearsal.ranks:
        return "The configuration stands."
    return "It would run."


def slowest(schedule: str, place: RankPlan) -> str:
    """Which place of the pipeline a step goes by."""
    return (
        f"{schedule}: pipeline rank {place.pipeline_rank} is the slowest, busy for "
        f"{figure_text(place.busy_seconds)} s."
    )


def groups(rehearsal: Rehearsal) -> str:
    """Process groups of the rank that has most of them, and what is bearable beside them."""
    reports = [rank.report for rank in rehearsal.stepped]
    return (
        f"A rank is in up to {max(report.groups for report in reports)} process groups, and takes "
        f"part in up to {max(report.groups_asked_here for report in reports)} makings of groups "
        "beside Megatron's own (as many as those are bearable)."
    )


def of_all(rehearsal: Rehearsal) -> list[str]:
    """What goes for all ranks that were rehearsed."""
    told = [groups(rehearsal)] if rehearsal.stepped else []
    return told + pipelines(rehearsal)


def pipelines(rehearsal: Rehearsal) -> list[str]:
    """What goes for all ranks of a step: the slowest, and how its messages hold together."""
    return [slowest(*step) for step in rehearsal.slowest.items()] + [
        in_time(pipeline.case.schedule, pipeline.report.messages)
        for pipeline in rehearsal.pipelines
        if pipeline.report.messages is not None
    ]
