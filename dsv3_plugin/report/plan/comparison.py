"""Several recipes side by side."""

import re
import textwrap
from collections.abc import Callable, Sequence

from dsv3_plugin.errors import printable
from dsv3_plugin.numbers import bytes_text, count_text, figure_text, money_text, time_text
from dsv3_plugin.planner.plan import Plan
from dsv3_plugin.report.plan import sentences
from dsv3_plugin.report.plan.case import Case
from dsv3_plugin.report.plan.grid import Grid
from dsv3_plugin.report.plan.grids import GIGABYTES, rate

_COLUMNS = 5
"""Recipes of one table; more of them get a further one."""
_WIDTH = 12
"""Characters of a line of a recipe's name above its column."""


def comparison(cases: Sequence[Case]) -> list[Grid]:
    """Tables with a column for each recipe; what has no cluster has its counts alone."""
    return [_grid(cases[first : first + _COLUMNS]) for first in range(0, len(cases), _COLUMNS)]


def remarks(cases: Sequence[Case]) -> list[str]:
    """What is to be said of each plan in words: where it runs, and its limit."""
    return [
        f"{case.name}, {sentences.where(case.plan)}: {sentences.limit(case.plan.limit)}"
        for case in cases
        if case.plan is not None
    ]


def _grid(cases: Sequence[Case]) -> Grid:
    rows = [
        ("parameters", *(count_text(case.parameters.total) for case in cases)),
        ("active", *(count_text(case.parameters.active) for case in cases)),
        ("FLOPs/token", *(count_text(case.flops.total) for case in cases)),
    ]
    if any(case.plan for case in cases):
        rows += [
            (label, *("" if case.plan is None else text(case.plan) for case in cases))
            for label, text in _ROWS.items()
        ]
    return Grid(("", *(_title(case.name) for case in cases)), tuple(rows))


def _title(name: str) -> str:
    """A name in short lines, ended behind `/`, `.`, `=` and blanks where that goes."""
    lines = [""]
    for word in re.findall(r"[^/.= ]*[/.= ]?", printable(name)):
        for part in textwrap.wrap(word, _WIDTH, break_on_hyphens=False, drop_whitespace=False):
            if len(lines[-1]) + len(part.rstrip()) > _WIDTH:
                lines.append("")
            lines[-1] += part
    return "\n".join(line.strip() for line in lines)


_ROWS: dict[str, Callable[[Plan], str]] = {
    "GPUs": lambda plan: f"{plan.processes:,}",
    "batch": lambda plan: f"{plan.longest.batch:,}",
    "step, s": lambda plan: figure_text(plan.longest.step_seconds),
    "tokens/s/GPU": lambda plan: rate(plan.longest),
    "MFU": lambda plan: f"{plan.longest.mfu:.1%}",
    "tokens": lambda plan: figure_text(plan.tokens),
    "time": lambda plan: time_text(plan.seconds),
    "GPU hours": lambda plan: figure_text(plan.gpu_hours),
    "cost": lambda plan: money_text(plan.cost, plan.cluster.currency),
    "GB, fullest rank": lambda plan: GIGABYTES.text(plan.fullest.fullest.memory_total),
    "GB, card": lambda plan: GIGABYTES.text(plan.cluster.memory_bytes),
    "a checkpoint": lambda plan: bytes_text(plan.longest.checkpoint_bytes),
    "fits": lambda plan: "yes" if plan.limit.fits else "no",
}
"""What is compared, of the phase that takes most time; label → its text."""
