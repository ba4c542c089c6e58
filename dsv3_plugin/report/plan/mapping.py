"""A plan as JSON has it: numbers in full, under names that stay."""

from dataclasses import asdict
from typing import Any

from dsv3_plugin.planner.plan import Limit, PhasePlan, Plan, RankPlan


def plan_mapping(plan: Plan) -> dict[str, Any]:
    """What `dsv3 plan --json` adds to the counts: times in seconds, memory in bytes."""
    return {
        "cluster": plan.cluster.model_dump(mode="json"),
        "imbalance": plan.imbalance,
        "processes": plan.processes,
        "phases": [_phase(phase) for phase in plan.phases],
        "totals": {
            "tokens": plan.tokens,
            "steps": plan.steps,
            "seconds": plan.seconds,
            "gpu_hours": plan.gpu_hours,
            "cost": plan.cost,
        },
        "limit": _limit(plan.limit),
        **({} if plan.round is None else {"round": asdict(plan.round)}),
        **({} if plan.kept is None else {"kept": asdict(plan.kept)}),
    }


def _phase(phase: PhasePlan) -> dict[str, Any]:
    return {
        "name": phase.name,
        "seq_length": phase.seq_length,
        "batch": phase.batch,
        "schedule": phase.schedule,
        "steps": phase.steps,
        "tokens": phase.tokens,
        "step_seconds": phase.step_seconds,
        "seconds": phase.seconds,
        "time_by_part": dict(phase.time_by_part),
        "tokens_per_second_per_gpu": phase.tokens_per_second_per_gpu,
        "mfu": phase.mfu,
        "gpu_hours": phase.gpu_hours,
        "cost": phase.cost,
        "checkpoint_bytes": phase.checkpoint_bytes,
        "checkpoints_written": phase.checkpoints_written,
        "stages": [_rank(rank) for rank in phase.ranks],
    }


def _rank(rank: RankPlan) -> dict[str, Any]:
    return {
        "pipeline_rank": rank.pipeline_rank,
        "layers": [stage.kinds for stage in rank.stages],
        "memory_bytes": dict(rank.memory_bytes),
        "moments": dict(rank.moments),
        "busy_seconds": rank.busy_seconds,
        "work": rank.work,
    }


def _limit(limit: Limit) -> dict[str, Any]:
    return {
        "fits": limit.fits,
        "sentence": limit.sentence,
        "overrides": [*limit.overrides],
        "way_out": limit.way_out,
    }
