"""How the work is divided among processes."""

import math
from collections.abc import Iterator

from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe.fitting import divisor, multiples
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
    if count % parallel.expert:
        yield (
            f"parallel.expert {parallel.expert} does not divide {count} routed experts: take a "
            f"number that does, such as {divisor(count, parallel.expert)}"
        )
    ranks = parallel.processes // parallel.pipeline
    if ranks % parallel.expert:
        both = math.gcd(count, ranks)
        whole = math.lcm(parallel.tensor * parallel.context, parallel.expert) * parallel.pipeline
        enough = multiples(parallel.processes, whole)
        yield (
            f"parallel.expert {parallel.expert} does not divide the {number_of(ranks, 'rank')} of "
            f"a pipeline stage ({number_of(parallel.processes, 'process', 'processes')} by "
            f"pipeline {parallel.pipeline}): take one that divides them and the experts, such as "
            f"{divisor(both, parallel.expert)}, or set parallel.processes to {enough}"
        )


def tensor(recipe: Recipe) -> Iterator[str]:
    """Tensor parallelism divides heads, vocabulary and sequence."""
    size, context = recipe.parallel.tensor, recipe.parallel.context
    left = f"tokens of a sequence that context {context} leaves a rank"
    for what, amount in (
        ("attention heads", recipe.model.num_attention_heads),
        ("vocabulary entries", recipe.model.vocab_size),
        ("tokens of a sequence" if context == 1 else left, recipe.data.seq_length // context),
    ):
        if amount % size:
            yield (
                f"parallel.tensor {size} does not divide the {amount} {what}: take one that "
                f"does, such as {divisor(amount, size)}"
            )


def _processes(recipe: Recipe) -> str:
    """That there are so many, and that they do not divide."""
    return (
        "1 process does not divide"
        if recipe.parallel.processes == 1
        else f"{recipe.parallel.processes} processes do not divide"
    )
