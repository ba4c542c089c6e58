"""A plan from a recipe and a cluster: where all parts of the planner come together."""

from collections.abc import Iterator

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.counts import flops_per_token, parameter_counts
from dsv3_plugin.planner.journal import Kept
from dsv3_plugin.planner.limits import limit_of
from dsv3_plugin.planner.memory.answering import cache
from dsv3_plugin.planner.memory.of_recipe import rank_memories
from dsv3_plugin.planner.memory.states import weights
from dsv3_plugin.planner.phases import Phase, phases_of
from dsv3_plugin.planner.plan import PhasePlan, Plan, RankPlan, RoundPlan, TimePart
from dsv3_plugin.planner.resolve import resolve
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.time.answering import answering_seconds, log_prob_seconds
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps
from dsv3_plugin.planner.time.step import (
    Step,
    checkpoint_bytes,
    evaluation_seconds,
    saving_seconds,
)
from dsv3_plugin.recipe.schema import Recipe


def make_plan(recipe: Recipe, cluster: Cluster, machine: Machine, imbalance: float = 1.0) -> Plan:
    """What a run will take, beforehand.

    Args:
        recipe: the run; what it leaves open is closed as training would close it.
        cluster: where it is meant to run.
        machine: what `auto` in the recipe is resolved for.
        imbalance: load of the busiest rank's experts over the mean.

    Raises:
        UserError: the cluster cannot run it at all (too few devices, a format they lack).
    """
    refuse_impossible(recipe, cluster)
    recipe = resolve(recipe, machine, cluster, must_fit=False)
    setting = Setting.of(recipe, cluster, machine, imbalance)
    steps = RecipeSteps(recipe, setting, cluster)
    flops = flops_per_token(recipe.model, recipe.data.seq_length)
    phases: list[PhasePlan] = []
    for phase in phases_of(recipe):
        before = sum(earlier.steps for earlier in phases)
        phases.append(_phase(steps, phase, before, flops.total))
    return Plan(
        name=recipe.name,
        cluster=cluster,
        processes=setting.processes,
        parameters=parameter_counts(recipe.model),
        flops=flops,
        phases=tuple(phases),
        limit=limit_of(steps, phases, machine),
        imbalance=imbalance,
        round=_round(steps),
        kept=Kept.of(recipe),
    )


def _round(steps: RecipeSteps) -> RoundPlan | None:
    """What a round of answers takes, where the run has them."""
    setting = steps.setting
    answering = setting.answering
    if answering is None:
        return None
    held = [
        tuple(steps.stages[steps.placement.model_stage(stage)] for stage in chunks)
        for chunks in steps.placement.chunks
    ]
    reference = max(weights(setting, stages) for stages in held) if answering.reference else 0
    run = (setting, answering, steps.cluster, steps.stages, steps.placement)
    return RoundPlan(
        answers=answering.prompts * answering.n,
        at_once=answering.at_once(setting.data),
        tokens=answering.tokens,
        made=answering.made,
        steps=answering.steps,
        seconds=answering_seconds(*run),
        cache_bytes=max(cache(setting, answering, stages) for stages in held),
        reference_bytes=reference,
        weights_bytes=parameter_counts(setting.model).total * setting.width,
    )


def refuse_impossible(recipe: Recipe, cluster: Cluster) -> None:
    """Raise UserError where the cluster cannot run a recipe, however it is laid out."""
    if sentence := next(_impossible(recipe, cluster), None):
        raise UserError(f"{recipe.name} on {cluster.name}: {sentence}.")


def _impossible(recipe: Recipe, cluster: Cluster) -> Iterator[str]:
    """Why no layout of the run could help."""
    processes = recipe.parallel.processes
    if processes > cluster.gpus:
        yield (
            f"it asks for {processes:,} devices, and there are {cluster.gpus:,}: lower "
            "parallel.processes, or name a larger cluster with --cluster"
        )
    yield from _not_computed(recipe, cluster)


def refuse_format(recipe: Recipe, cluster: Cluster) -> None:
    """Raise UserError where the devices of a cluster do not compute in a recipe's format."""
    if sentence := next(_not_computed(recipe, cluster), None):
        raise UserError(f"{recipe.name} on {cluster.name}: {sentence}.")


def _not_computed(recipe: Recipe, cluster: Cluster) -> Iterator[str]:
    fp8 = recipe.precision.fp8
    if fp8 is None:
        return
    if cluster.peak_tflops.fp8 is None:
        yield f"{cluster.gpu} does not compute in FP8: set precision.fp8=null"
    elif fp8.recipe == "mxfp8" and not cluster.is_blackwell:
        yield (
            f"{cluster.gpu} has no products of blocks of 32 values, which Blackwell was the first "
            "to have: set precision.fp8.recipe=blockwise"
        )


def _phase(steps: RecipeSteps, phase: Phase, before: int, flops_per_token: int) -> PhasePlan:
    """A phase that begins after `before` steps of the run."""
    recipe, setting, cluster = steps.recipe, steps.setting, steps.cluster
    last, smallest, largest = phase.batches[-1][0], phase.smallest, phase.largest
    at = {batch: steps.step(batch) for batch in {last, smallest, largest}}
    parts = at[last].parts.copy()
    parts["saving"] = saving_seconds(setting, cluster) / recipe.checkpoint.interval
    if recipe.training.eval_interval is not None:
        # Evaluations have the first batch, whatever the batch has grown to.
        micro_batches = steps.micro_batches(recipe.batch_schedule.batch(0))
        once = evaluation_seconds(setting, cluster, steps.stages, steps.placement, micro_batches)
        evaluated = recipe.training.eval_steps * once
        parts["evaluation"] = evaluated / recipe.training.eval_interval
    if setting.answering is not None:
        run = (setting, setting.answering, cluster, steps.stages, steps.placement)
        parts["answering"] = answering_seconds(*run) / setting.answering.steps
        parts["log_probs"] = log_prob_seconds(*run, steps.micro_batches(last))
    besides = sum(parts[part] for part in _BESIDES)
    step_seconds = at[last].seconds + besides

    def seconds(batch: int) -> float:
        """Of a step: a schedule grows by the same for every micro-batch."""
        if batch == last:
            return step_seconds
        grown = (batch - smallest) / (largest - smallest)
        return (1 - grown) * at[smallest].seconds + grown * at[largest].seconds + besides

    total = sum(number * seconds(batch) for batch, number in phase.batches)
    tokens_per_second = last * phase.seq_length / step_seconds / setting.processes
    peak = getattr(cluster.peak_tflops, setting.matmul)
    gpu_hours = total * setting.processes / 3600
    return PhasePlan(
        name=phase.name,
        seq_length=phase.seq_length,
        batch=last,
        schedule=phase.schedule,
        steps=phase.steps,
        tokens=phase.tokens,
        step_seconds=step_seconds,
        seconds=total,
        time_by_part={part: value for part, value in parts.items() if value},
        tokens_per_second_per_gpu=tokens_per_second,
        mfu=tokens_per_second * flops_per_token / (peak * 1e12),
        gpu_hours=gpu_hours,
        cost=gpu_hours * cluster.price_per_gpu_hour,
        checkpoint_bytes=checkpoint_bytes(setting),
        checkpoints_written=_checkpoints(recipe, before, before + phase.steps),
        ranks=tuple(_ranks(steps, largest, at[last])),
    )


_BESIDES: tuple[TimePart, ...] = ("saving", "evaluation", "answering", "log_probs")
"""What comes to a step's own seconds."""


def _checkpoints(recipe: Recipe, begin: int, end: int) -> int:
    """How many are written in the steps of a run from one to another; its last step saves, too."""
    interval = recipe.checkpoint.interval
    beside = end == recipe.total_steps and end % interval > 0
    return end // interval - begin // interval + beside


def _ranks(steps: RecipeSteps, batch: int, step: Step) -> Iterator[RankPlan]:
    """Each rank, its memory in a step of `batch` sequences."""
    mean = sum(step.work) / len(step.work)
    for rank, memory in enumerate(rank_memories(steps, batch)):
        yield RankPlan(
            pipeline_rank=rank,
            stages=memory.stages,
            memory_bytes=memory.parts,
            moments=memory.moments,
            busy_seconds=step.busy[rank],
            work=step.work[rank] / mean,
        )
