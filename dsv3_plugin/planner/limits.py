"""The tightest limit of a run, and where it does not fit the nearest change with which it does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.numbers import bytes_text
from dsv3_plugin.planner.phases import phases_of
from dsv3_plugin.planner.plan import Limit, PhasePlan
from dsv3_plugin.planner.recipe_memory import rank_memories
from dsv3_plugin.planner.recipe_steps import RecipeSteps
from dsv3_plugin.planner.resolve import resolve
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.recipe.load import changed
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sections import BALANCED

_CHEAPEST_FIRST = ("moe_act", "norms", "mla_up_proj", "shared_experts", "mlp", "core_attn", "moe")
"""What can be computed again, by how much time it takes for the bytes it gives back."""


def limit_of(steps: RecipeSteps, phases: Sequence[PhasePlan], machine: Machine) -> Limit:
    """What of a run comes closest to what the cluster has."""
    card = steps.cluster.memory_bytes
    phase = max(phases, key=lambda phase: phase.fullest.memory_total)
    rank = phase.fullest
    moment = max(rank.moments, key=lambda moment: rank.moments[moment])
    where = f"pipeline rank {rank.pipeline_rank} needs {bytes_text(rank.memory_total)}"
    when = {"step": "in a step", "optimizer": "in the update", "saving": "while saving"}[moment]
    sentence = f"{where} {when}, of {bytes_text(card)} on {steps.cluster.gpu} ({phase.name})"
    if rank.memory_total <= card:
        return Limit(True, f"memory is the tightest limit: {sentence}")
    sentence = f"it does not fit: {sentence}"
    nearest = _nearest(steps, machine)
    if nearest is None:
        return Limit(False, sentence)
    return Limit(
        False,
        sentence,
        nearest.overrides,
        f"it fits with {' '.join(nearest.overrides)} ({bytes_text(nearest.total)})",
    )


@dataclass(frozen=True)
class _Change:
    """Overrides, and what the fullest rank then needs."""

    overrides: tuple[str, ...]
    total: int


def _nearest(steps: RecipeSteps, machine: Machine) -> _Change | None:
    """The first change that fits: one at a time, then several, then a finer division."""
    for overrides in _changes(steps.recipe):
        try:
            recipe = resolve(changed(steps.recipe, overrides), machine, steps.cluster)
            total = _fullest(steps, recipe, machine)
        except UserError:
            continue  # a rule forbids it
        if total <= steps.cluster.memory_bytes:
            return _Change(overrides, total)
    return None


def _fullest(steps: RecipeSteps, recipe: Recipe, machine: Machine) -> int:
    setting = Setting.of(recipe, steps.cluster, machine, steps.setting.imbalance)
    others = replace(steps, recipe=recipe, setting=setting)
    batches = {phase.schedule: phase.batches[-1][0] for phase in phases_of(recipe)}
    return max(
        memory.total for batch in batches.values() for memory in rank_memories(others, batch)
    )


def _changes(recipe: Recipe) -> Iterator[tuple[str, ...]]:
    single = [*_small_changes(recipe)]
    yield from ((change,) for change in single)
    # One after the other; of one key the last counts, which has all the others of it.
    for together in accumulate((change,) for change in single):
        yield tuple({change.partition("=")[0]: change for change in together}.values())
    largest = {change.partition("=")[0]: change for change in single}
    parallel = recipe.parallel
    for key, size in (("expert", parallel.expert), ("pipeline", parallel.pipeline)):
        for factor in (2, 4, 8):
            more = (f"parallel.{key}={size * factor}",)
            if key == "pipeline":
                more += (f"pipeline.devices={size * factor}", f"pipeline.layout={BALANCED}")
            yield more
            yield (*largest.values(), *more)


def _small_changes(recipe: Recipe) -> Iterator[str]:
    """Changes that leave the division among devices as it is, the least first."""
    again = list(recipe.recompute)
    for name in _CHEAPEST_FIRST:
        if name not in again:
            again.append(name)
            yield f"recompute=[{','.join(again)}]"
    if recipe.training.micro_batch_size > 1:
        yield "training.micro_batch_size=1"
    if not recipe.parallel.zero1 and recipe.data_parallel > 1:
        yield "parallel.zero1=true"
    if recipe.precision.moments == "fp32" and recipe.precision.dtype == "bf16":
        yield "precision.moments=bf16"
