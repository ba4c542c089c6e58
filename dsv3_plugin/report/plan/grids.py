"""The tables of one plan: its phases, memory of its ranks, and where the time of a step goes."""

import math
from dataclasses import dataclass

from dsv3_plugin.numbers import figure_text, money_text, time_text, tokens_text
from dsv3_plugin.planner.plan import PhasePlan, Plan, RankPlan
from dsv3_plugin.report.plan.grid import Grid
from dsv3_plugin.report.plan.words import MEMORY, TIME, roles, stages_text


def phases(plan: Plan) -> Grid:
    """One row per phase, and the whole run; what all phases have in common is left out."""
    currency = plan.cluster.currency
    lengths = len({phase.seq_length for phase in plan.phases}) > 1
    schedules = len({phase.schedule for phase in plan.phases}) > 1

    def row(phase: PhasePlan) -> tuple[str, ...]:
        name = f"{phase.name}\n{phase.schedule}" if schedules else phase.name
        return (
            name,
            *([tokens_text(phase.seq_length)] if lengths else []),
            f"{phase.batch:,}",
            tokens_text(phase.tokens),
            figure_text(phase.step_seconds),
            rate(phase),
            f"{phase.mfu:.1%}",
            time_text(phase.seconds),
            figure_text(phase.gpu_hours),
            money_text(phase.cost, currency),
        )

    blank = ("",) * (2 if lengths else 1)
    total = (
        "whole run",
        *blank,
        tokens_text(plan.tokens),
        "",
        "",
        "",
        time_text(plan.seconds),
        figure_text(plan.gpu_hours),
        money_text(plan.cost, currency),
    )
    header = (
        "phase",
        *(["sequence"] if lengths else []),
        "batch",
        "tokens",
        "step\ns",
        "tokens/s\nper GPU",
        "MFU",
        "time",
        "GPU\nhours",
        "cost",
    )
    rows = tuple(map(row, plan.phases))
    return Grid(header, rows, total if len(rows) > 1 else None, gap=1)


def memory(plan: Plan, balanced: Plan | None = None) -> Grid:
    """The fullest rank by part against the card; beside it at balance, where it is not balanced."""
    columns = [plan] if balanced is None else [balanced, plan]
    fullest = [_fullest(column) for column in columns]
    card = plan.cluster.memory_bytes
    unit = unit_for(fullest[0].memory_total)
    rows = [
        (label, *(unit.text(rank.memory_bytes.get(part, 0)) for rank in fullest))
        for part, label in MEMORY.items()
        if any(rank.memory_bytes.get(part) for rank in fullest)
    ]
    rows += [
        ("in all", *(unit.text(rank.memory_total) for rank in fullest)),
        (plan.cluster.gpu, *(unit.text(card) for _ in fullest)),
    ]
    total = ("headroom", *(unit.text(card - rank.memory_total) for rank in fullest))
    if balanced is None:
        return Grid((unit.name, "fullest"), tuple(rows), total)
    return Grid((unit.name, "at balance", f"at {plan.imbalance:g} × mean"), tuple(rows), total)


def ranks(plan: Plan, phase: PhasePlan, every: bool = False) -> Grid:
    """Pipeline ranks of a phase: every one, or the telling ones."""
    named = roles(phase)
    shown = [rank for rank in phase.ranks if every or rank.pipeline_rank in named]
    card = plan.cluster.memory_bytes
    unit = unit_for(phase.fullest.memory_total)
    rows = tuple(
        (
            f"{rank.pipeline_rank} {stages_text(rank)}",
            figure_text(rank.busy_seconds),
            f"{rank.work:.3f}",
            unit.text(rank.memory_total),
            unit.text(card - rank.memory_total),
            named.get(rank.pipeline_rank, ""),
        )
        for rank in shown
    )
    header = ("pipeline rank", "busy, s", "work/mean", unit.name, "headroom", "")
    return Grid(header, rows, remark=True)


def time(phase: PhasePlan) -> Grid:
    """Seconds of a step by part, with shares."""
    parts, step = phase.time_by_part, phase.step_seconds
    decimals = max(0, 3 - math.floor(math.log10(step)))
    rows = tuple(
        (label, f"{parts[part]:.{decimals}f}", f"{parts[part] / step:.1%}")
        for part, label in TIME.items()
        if parts.get(part)
    )
    return Grid(("part", "s", "share"), rows, ("a step", f"{step:.{decimals}f}", "100.0%"))


def rate(phase: PhasePlan) -> str:
    """Tokens of a second and GPU."""
    number = phase.tokens_per_second_per_gpu
    return f"{number:,.0f}" if number >= 100 else figure_text(number, 3)


@dataclass(frozen=True)
class Unit:
    """A unit that bytes of one table are told in."""

    name: str
    size: float

    def text(self, number: int) -> str:
        """Bytes in it."""
        return f"{number / self.size:,.1f}"


GIGABYTES, MEGABYTES = Unit("GB", 1e9), Unit("MB", 1e6)
"""Powers of 1000, as data sheets have a device's memory."""


def unit_for(largest: int) -> Unit:
    """What bytes of such a size are told in."""
    return GIGABYTES if largest >= GIGABYTES.size else MEGABYTES


def _fullest(plan: Plan) -> RankPlan:
    return plan.fullest.fullest
