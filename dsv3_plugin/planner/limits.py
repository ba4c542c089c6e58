"""The tightest limit of a run, and where it does not fit the nearest change with which it does."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import get_args

from dsv3_plugin.machine import Machine
from dsv3_plugin.numbers import bytes_text
from dsv3_plugin.planner.changes import Change, tried
from dsv3_plugin.planner.plan import Limit, PhasePlan
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sections import BALANCED, Recomputed
from dsv3_plugin.schedules.registry import RAMPS, SCHEDULES


def limit_of(steps: RecipeSteps, phases: Sequence[PhasePlan], machine: Machine) -> Limit:
    """What of a run comes closest to what the cluster has."""
    card = steps.cluster.memory_bytes
    phase = max(phases, key=lambda phase: phase.fullest.memory_total)
    rank = phase.fullest
    moment = max(rank.moments, key=lambda moment: rank.moments[moment])
    where = f"pipeline rank {rank.pipeline_rank} needs {bytes_text(rank.memory_total)}"
    when = {
        "step": "in a step",
        "optimizer": "in the update",
        "saving": "while saving",
        "answering": "in a round of answers",
    }[moment]
    sentence = f"{where} {when}, of {bytes_text(card)} on {steps.cluster.gpu} ({phase.name})"
    if rank.memory_total <= card:
        return Limit(True, f"memory is the tightest limit: {sentence}")
    sentence = f"it does not fit: {sentence}"
    nearest = _nearest(steps, machine)
    if nearest is None:
        return Limit(False, f"{sentence}; {_NOTHING_NEAR}")
    return Limit(
        False,
        sentence,
        nearest.overrides,
        f"it fits with {' '.join(nearest.overrides)} ({bytes_text(nearest.total)})",
    )


_NOTHING_NEAR = (
    "neither computing more again nor smaller micro-batches nor a finer division make it fit: take "
    "more devices (parallel.processes) or larger ones (--cluster), or let --search look further"
)


def _nearest(steps: RecipeSteps, machine: Machine) -> Change | None:
    """The fastest of the smallest changes that fit: one, two, all together, a finer division."""
    for alike in _changes(steps.recipe):
        fitting = [
            change
            for overrides in alike
            if (change := tried(steps, overrides, machine)) is not None
            and change.total <= steps.cluster.memory_bytes
        ]
        if fitting:
            return min(fitting, key=lambda change: change.seconds)
    return None


def _changes(recipe: Recipe) -> Iterator[list[tuple[str, ...]]]:
    """Overrides, those that change as much together."""
    single = list(_small_changes(recipe))
    yield [overrides for overrides, _ in single]
    yield [_together(recipe, (one, other)) for one, other in combinations(single, 2)]
    everything = _together(recipe, single)
    yield [everything]
    parallel = recipe.parallel
    for factor in (2, 4, 8):
        finer = (
            (f"parallel.expert={parallel.expert * factor}",),
            (
                f"parallel.pipeline={parallel.pipeline * factor}",
                f"pipeline.devices={parallel.pipeline * factor}",
                f"pipeline.layout={BALANCED}",
            ),
        )
        yield list(finer)
        yield [(*everything, *more) for more in finer]


_Small = tuple[tuple[str, ...], tuple[str, ...]]
"""Overrides, and what of the layers is computed again with them, beyond what is already."""


def _small_changes(recipe: Recipe) -> Iterator[_Small]:
    """Changes that leave the division among devices as it is."""
    for name in get_args(Recomputed):
        if name not in recipe.recompute:
            yield (_recompute(recipe, (name,)),), (name,)
    if recipe.training.micro_batch_size > 1:
        yield ("training.micro_batch_size=1",), ()
    if not recipe.parallel.zero1 and recipe.data_parallel > 1:
        yield ("parallel.zero1=true",), ()
    ramp = recipe.pipeline.ramp_schedule
    for other in RAMPS if ramp is not None else ():
        if other != ramp and not SCHEDULES[other].searched:
            yield (f"pipeline.ramp_schedule={other}",), ()
    if recipe.precision.moments == "fp32" and recipe.precision.dtype == "bf16":
        yield ("precision.moments=bf16",), ()


def _together(recipe: Recipe, small: Iterable[_Small]) -> tuple[str, ...]:
    """Several small changes at once; what they compute again is one key."""
    names: list[str] = []
    overrides: list[str] = []
    for texts, again in small:
        names += again
        if not again:
            overrides += texts
    return (*([_recompute(recipe, names)] if names else []), *overrides)


def _recompute(recipe: Recipe, more: Sequence[str]) -> str:
    return f"recompute=[{','.join([*recipe.recompute, *more])}]"
