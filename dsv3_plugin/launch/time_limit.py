"""The time limit of a job, and what a job spends of it on other things than steps. Pure."""

import math
from dataclasses import dataclass

from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import time_text
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.plan import Plan
from dsv3_plugin.recipe.schema import Recipe

_SHORTEST_NOTICE_S = 60
"""Slurm counts time limits in minutes, and announces their end up to a minute early."""
_START_S = 120
"""Until the first step, reading a checkpoint aside: nodes are looked at, every rank imports torch,
meets the others and builds its part. Supposed, not measured on GPUs; less would be no job."""
_FEWEST_STEPS = 3
"""Of a job between its start and its end: with fewer it does little but start and save."""


@dataclass(frozen=True)
class Spent:
    """Seconds of a job that are known before it runs.

    Attributes:
        start: until its ranks have begun, without reading a checkpoint.
        checkpoint: one that is read, which is taken to last as long as writing it.
        step: the longest.
        notice: how long before the end of its time a run begins to save.
    """

    start: int
    checkpoint: float
    step: float
    notice: int

    @property
    def least(self) -> float:
        """A time limit with which a job does some steps, though its end is announced early."""
        steps = _FEWEST_STEPS * self.step
        return self.start + self.checkpoint + steps + self.notice + _SHORTEST_NOTICE_S


def minutes_of(cluster: Cluster) -> int | None:
    """The time limit as Slurm counts it; None: the partition's, which is not known here."""
    hours = cluster.launch.time_limit_hours
    return None if hours is None else max(1, round(60 * hours))


def spent(recipe: Recipe, plan: Plan) -> Spent:
    """What a job of a run spends its time on, by the plan.

    The notice is twice what the plan says of the longest step and of a checkpoint, since neither
    was measured.
    """
    saving = [
        phase.time_by_part.get("saving", 0.0) * recipe.checkpoint.interval for phase in plan.phases
    ]
    steps = [phase.step_seconds for phase in plan.phases]
    longest = max(step + save for step, save in zip(steps, saving, strict=True))
    notice = max(_SHORTEST_NOTICE_S, math.ceil(2 * longest))
    return Spent(_START_S, max(saving), max(steps), notice)


def refuse_too_short(where: str, minutes: int | None, parts: Spent) -> None:
    """Raise UserError for a time limit in which a job could hardly do a step.

    Args:
        where: the run, on which cluster.
        minutes: the limit, as Slurm counts it.
        parts: what a job spends its time on.
    """
    if minutes is None or 60 * minutes >= parts.least:
        return
    hours = math.ceil(100 * math.ceil(parts.least / 60) / 60) / 100  # of whole minutes
    raise UserError(
        f"{where}: a time limit of {time_text(60 * minutes)} is too short: starting takes some "
        f"{time_text(parts.start)}, reading a checkpoint {time_text(parts.checkpoint)}, "
        f"{_FEWEST_STEPS} steps {time_text(_FEWEST_STEPS * parts.step)} by the plan, and the ranks "
        f"are told to save {time_text(parts.notice)} before the end, which Slurm does up to "
        f"{time_text(_SHORTEST_NOTICE_S)} early: set launch.time_limit_hours to {hours:g} or more "
        "in the cluster's file."
    )
