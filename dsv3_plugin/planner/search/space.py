"""The ways of running a recipe that a search looks at.

Only what the rules of recipes allow, as far as that is plain from sizes; a way that is chosen is
held to all of them when it becomes a recipe. The processes stay, and so does whatever changes the
numbers of a run beyond the order of its sums: formats, batch, curves.
"""

import functools
from collections.abc import Iterator
from dataclasses import replace

from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.search.candidate import Choice
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.schedules.placement import Placement
from dsv3_plugin.schedules.registry import SCHEDULES, ScheduleKind

_TENSOR = (1, 2, 4, 8)
_MICRO_BATCHES = (1, 2, 4, 8)
_CHUNKS = (2, 3, 4)
"""Stages per rank of a schedule that leaves them open; more send more messages for little."""
_LEAST_TOKENS = 4096
"""Of a sequence that context parallelism leaves on a rank; what is shorter needs no dividing."""

_RECOMPUTED = {
    "transformer_engine": (
        (),
        ("norms", "moe_act"),
        ("norms", "mla_up_proj", "moe_act"),
        ("norms", "mla_up_proj", "mlp", "moe"),
        ("norms", "mla_up_proj", "core_attn", "mlp", "moe"),
    ),
    "local": ((), ("norms",), ("norms", "mla_up_proj"), ("norms", "mla_up_proj", "mlp", "moe")),
}
"""By backend, each giving back more bytes than the one before, for more time."""


def choices(recipe: Recipe, cluster: Cluster, machine: Machine) -> Iterator[Choice]:
    """Every way that is looked at, with nothing computed again (`recomputed`)."""
    backend = recipe.resolved_backend(machine)
    for tensor, pipeline, context, expert in _divisions(recipe, cluster, backend):
        whole = tensor == 1 and context == 1
        data = recipe.parallel.processes // (tensor * pipeline * context)
        for micro_batch in _MICRO_BATCHES:
            counts = _micro_batches(recipe, micro_batch * data)
            if counts is None:
                continue
            for schedule, ramp, chunks in _schedules(recipe, pipeline, counts, whole):
                for dispatcher, wire in _dispatchers(recipe, cluster, expert):
                    yield Choice(
                        tensor=tensor,
                        pipeline=pipeline,
                        context=context,
                        expert=expert,
                        micro_batch=micro_batch,
                        schedule=schedule,
                        ramp_schedule=ramp,
                        virtual_stages=chunks,
                        recompute=(),
                        dispatcher=dispatcher,
                        wire=wire,
                    )


def with_other_schedules(recipe: Recipe, choice: Choice) -> Iterator[Choice]:
    """A way with each schedule that its division allows."""
    divided = choice.tensor * choice.pipeline * choice.context
    counts = _micro_batches(recipe, choice.micro_batch * (recipe.parallel.processes // divided))
    if counts is None:
        return
    whole = choice.tensor == 1 and choice.context == 1
    for schedule, ramp, chunks in _schedules(recipe, choice.pipeline, counts, whole):
        yield replace(choice, schedule=schedule, ramp_schedule=ramp, virtual_stages=chunks)


def recomputed(recipe: Recipe, machine: Machine) -> list[tuple[str, ...]]:
    """What may be computed again: nothing, ever more, and what the recipe says."""
    levels = list(_RECOMPUTED[recipe.resolved_backend(machine)])
    own = tuple(recipe.recompute)
    if not any(set(own) == set(level) for level in levels):
        # Before the first that recomputes all of it.
        after = [set(own) <= set(level) for level in levels]
        levels.insert(after.index(True) if True in after else len(levels), own)
    return [own if set(own) == set(level) else level for level in levels]


def _divisions(
    recipe: Recipe, cluster: Cluster, backend: str
) -> Iterator[tuple[int, int, int, int]]:
    """(tensor, pipeline, context, expert) parallel sizes that divide what they must."""
    model, processes, length = recipe.model, recipe.parallel.processes, recipe.data.seq_length
    experts = model.num_moe_experts or 1
    contexts = [1]
    if backend == "transformer_engine":
        contexts += [c for c in _powers_of_two(length // _LEAST_TOKENS) if length % (2 * c) == 0]
    for tensor in _TENSOR:
        divided = (model.num_attention_heads, model.vocab_size, length)
        if tensor > cluster.gpus_per_node or any(amount % tensor for amount in divided):
            continue
        for context in contexts:
            ranks, rest = divmod(processes, tensor * context)
            if rest:
                continue
            for pipeline in _divisors(ranks, min(256, model.num_layers + 2)):
                for expert in _divisors(experts, processes // pipeline):
                    if (processes // pipeline) % expert == 0:
                        yield tensor, pipeline, context, expert


def _micro_batches(recipe: Recipe, at_once: int) -> tuple[int, int] | None:
    """(fewest, most) micro-batches of a step; None where a batch does not divide.

    Args:
        at_once: sequences that all ranks take at once.
    """
    ends = [
        value
        for segment in recipe.curves.batch_size.segments
        for value in (segment.first, segment.last)
    ]
    if any(value < at_once or value % at_once for value in ends):
        return None
    return int(min(ends)) // at_once, int(max(ends)) // at_once


def _schedules(
    recipe: Recipe, pipeline: int, counts: tuple[int, int], whole: bool
) -> Iterator[tuple[str, str | None, int | None]]:
    """(schedule, ramp schedule, stages per rank where it leaves them open).

    Args:
        counts: fewest and most micro-batches of a step.
        whole: whether ranks hold whole sequences and matrices, which our own executor needs.
    """
    fewest, most = counts
    if pipeline == 1:
        yield "1f1b", None, None
        return
    for kind in SCHEDULES.values():
        if kind.searched or not kind.exists(pipeline, most):
            continue
        upstreams = kind.runs_upstream and recipe.pipeline.executor != "ours"
        if not (upstreams or whole):
            continue
        for chunks in _CHUNKS if kind.takes_stages_per_rank else (None,):
            depth = _placement(kind, pipeline, chunks).depth
            if depth - 2 > recipe.model.num_layers:
                continue
            if upstreams and kind.upstream_multiple is not None:
                multiple = kind.upstream_multiple(pipeline)
                if fewest % multiple == 0 and most % multiple == 0:
                    yield kind.name, None, chunks
            elif kind.exists(pipeline, fewest):
                yield kind.name, None, chunks
            elif (ramp := _ramp(kind, pipeline)) is not None:
                yield kind.name, ramp, chunks


def _ramp(kind: ScheduleKind, pipeline: int) -> str | None:
    """A schedule of the same placement for fewer micro-batches."""
    for other in SCHEDULES.values():
        same = not other.searched and other.takes_any_number
        if same and _placement(other, pipeline) == _placement(kind, pipeline):
            return other.name
    return None


@functools.lru_cache(maxsize=1024)
def _placement(kind: ScheduleKind, pipeline: int, chunks: int | None = None) -> Placement:
    return kind.placement(pipeline, chunks)


def _dispatchers(recipe: Recipe, cluster: Cluster, expert: int) -> Iterator[tuple[str, str]]:
    """(dispatcher, wire): upstream's, ours where it has nodes to cross, and the recipe's own."""
    own = recipe.dispatch
    found = {("alltoall", "bf16"): None}
    per_node = cluster.gpus_per_node if own.ranks_per_node == "auto" else own.ranks_per_node
    fills_nodes = expert % per_node == 0 or per_node % expert == 0
    if recipe.model.num_moe_experts is not None and fills_nodes:
        if expert > per_node:
            wire = own.precision if own.kind == "two_hop" else "bf16"
            found["two_hop", wire] = None
        found[own.kind, own.precision] = None
    yield from found


def _divisors(number: int, most: int) -> list[int]:
    return [divisor for divisor in range(1, min(number, most) + 1) if number % divisor == 0]


def _powers_of_two(most: int) -> Iterator[int]:
    power = 2
    while power <= most:
        yield power
        power *= 2
