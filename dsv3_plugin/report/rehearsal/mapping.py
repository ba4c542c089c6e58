"""A rehearsal as plain values, for JSON."""

from dataclasses import asdict
from typing import Any

from dsv3_plugin.rehearsal.rehearsal import Rehearsal
from dsv3_plugin.rehearsal.stepped import SteppedPipeline, SteppedRank


def mapping(rehearsal: Rehearsal) -> dict[str, Any]:
    """Every number of a rehearsal."""
    return {
        "name": rehearsal.name,
        "cluster": rehearsal.cluster.name,
        "processes": rehearsal.processes,
        "device": rehearsal.device,
        "would_run": rehearsal.would_run,
        "findings": [asdict(finding) for finding in rehearsal.findings],
        "ranks": [_rank(rank, rehearsal) for rank in rehearsal.ranks],
        "pipelines": [_pipeline(pipeline) for pipeline in rehearsal.pipelines],
    }


def _pipeline(pipeline: SteppedPipeline) -> dict[str, Any]:
    """Times are seconds."""
    messages = pipeline.report.messages
    return asdict(pipeline.case) | ({} if messages is None else asdict(messages))


def _rank(rank: SteppedRank, rehearsal: Rehearsal) -> dict[str, Any]:
    """`work` is in means; `waiting` a share of the step."""
    report = rank.report
    return {
        "rank": report.rank,
        "pipeline_rank": rank.planned.pipeline_rank,
        **asdict(rank.case),
        "memory": rank.memory,
        "planned": rank.planned.memory_bytes,
        "card": rank.card,
        "work": rank.planned.work,
        "waiting": rehearsal.waiting(rank),
        "states": report.states,
        "moments": report.moments,
        "answered": None if report.answered is None else asdict(report.answered),
        "operations": None if report.operations is None else asdict(report.operations),
        "host_waits": report.synchronisations,
        "collectives": len(report.collectives),
        "groups": report.groups,
        "groups_asked_here": report.groups_asked_here,
    }
