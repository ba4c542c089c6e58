"""How the work is divided among processes."""

import math
from collections.abc import Iterator

from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe.fitting import all_of, divisor, multiples
from dsv3_plugin.recipe.schema import Recipe


def processes(recipe: Recipe) -> Iterator[str]:
    """The model-parallel sizes divide the processes."""
    parallel = recipe.parallel
    together = parallel.tensor * parallel.pipeline * parallel.context
    if parallel.processes % together:
        yield (
            f"{_processes(recipe)} by tensor {parallel.tensor} × pipeline {parallel.pipeline} × "
            f"context {parallel.context} = {together}: set parallel.processes to "
            f"{multiples(parallel.processes, together)}, or divide less"
        )


def experts(recipe: Recipe) -> Iterator[str]:
    """Expert parallelism divides the routed experts and the ranks of a stage."""
    parallel, count = recipe.parallel, recipe.model.num_moe_experts
    if parallel.expert == 1:
        return
    if count is None:
        yield f"parallel.expert {parallel.expert} needs a model with experts: set it to 1"
        return
    ranks = parallel.processes // parallel.pipeline
    if ranks % parallel.expert:
        both = math.gcd(count, ranks)
        whole = math.lcm(parallel.tensor * parallel.context, parallel.expert) * parallel.pipeline
        enough = multiples(parallel.processes, whole)
        yield (
            f"parallel.expert {parallel.expert} does not divide the {number_of(ranks, 'rank')} of "
            f"a pipeline stage ({number_of(parallel.processes, 'process', 'processes')} by "
            f"pipeline {parallel.pipeline}): take one that divides them and the {count} routed "
            f"experts, such as {divisor(both, parallel.expert)}"
            + (f", or set parallel.processes to {enough}" if count % parallel.expert == 0 else "")
        )
    elif count % parallel.expert:
        yield (
            f"parallel.expert {parallel.expert} does not divide {count} routed experts: take a "
            f"number that divides them and the {number_of(ranks, 'rank')} of a pipeline stage, "
            f"such as {divisor(math.gcd(count, ranks), parallel.expert)}"
        )


def tensor(recipe: Recipe) -> Iterator[str]:
    """Tensor parallelism divides heads, vocabulary and sequence."""
    size, context = recipe.parallel.tensor, recipe.parallel.context
    tokens = "tokens of a sequence"
    amounts = {
        "attention heads": recipe.model.num_attention_heads,
        "vocabulary entries": recipe.model.vocab_size,
        tokens if context == 1 else f"{tokens} that context {context} leaves a rank": (
            recipe.data.seq_length // context
        ),
    }
    ranks = recipe.parallel.processes // (recipe.parallel.pipeline * context)
    if undivided := [f"the {amount} {what}" for what, amount in amounts.items() if amount % size]:
        yield (
            f"parallel.tensor {size} does not divide {all_of(undivided)}: take one that divides "
            f"all, such as {divisor(math.gcd(*amounts.values(), ranks), size)}"
        )


def _processes(recipe: Recipe) -> str:
    """That there are so many, and that they do not divide."""
    return (
        "1 process does not divide"
        if recipe.parallel.processes == 1
        else f"{recipe.parallel.processes} processes do not divide"
    )
