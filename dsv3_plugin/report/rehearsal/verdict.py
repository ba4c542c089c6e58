"""A rehearsal for people, on a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from dsv3_plugin.errors import printable
from dsv3_plugin.numbers import figure_text
from dsv3_plugin.rehearsal.rehearsal import Rehearsal
from dsv3_plugin.rehearsal.report import Finding, Messages
from dsv3_plugin.report.rehearsal import grids


def verdict(rehearsal: Rehearsal) -> Group:
    """All of a rehearsal, within 80 columns."""
    shown: list[RenderableType] = [Text(printable(_where(rehearsal))), Text()]
    if any(rank.report.memory for rank in rehearsal.ranks):
        for grid in (grids.stages(rehearsal), grids.memory(rehearsal), grids.work(rehearsal)):
            shown += [grid.table(), Text()]
    for pipeline in rehearsal.pipelines:
        if pipeline.report.messages is not None:
            shown.append(Text(in_time(pipeline.case.schedule, pipeline.report.messages)))
    if rehearsal.pipelines:
        shown.append(Text())
    shown += [Text(printable(line)) for line in map(sentence, rehearsal.findings)]
    shown.append(Text(_in_the_end(rehearsal), "bold"))
    return Group(*shown)


def sentence(finding: Finding) -> str:
    """A finding with its way out."""
    way_out = f" ({finding.way_out})" if finding.way_out else ""
    return f"{'✗' if finding.stops else '·'} {finding.sentence}{way_out}."


def _where(rehearsal: Rehearsal) -> str:
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


def _in_the_end(rehearsal: Rehearsal) -> str:
    if not rehearsal.would_run:
        return "It would not run."
    if not rehearsal.ranks:
        return "The configuration stands."
    return "It would run."
