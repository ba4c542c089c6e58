"""How the work is divided among processes."""

import math
from collections.abc import Iterator

from dsv3_plugin.recipe.schema import Recipe


def processes(recipe: Recipe) -> Iterator[str]:
    """The model-parallel sizes divide the processes."""
    parallel = recipe.parallel
    together = parallel.tensor * parallel.pipeline * parallel.context
    if parallel.processes % together:
        yield (
            f"{parallel.processes} processes do not divide by tensor {parallel.tensor} × "
            f"pipeline {parallel.pipeline} × context {parallel.context} = {together}: take "
            f"{_multiples(parallel.processes, together)} processes, or divide less"
        )


def experts(recipe: Recipe) -> Iterator[str]:
    """Expert parallelism divides the routed experts and the ranks of a stage."""
    parallel, count = recipe.parallel, recipe.model.num_moe_experts
    if parallel.expert == 1:
        return
    if count is None:
        yield f"expert {parallel.expert} needs a model with experts"
        return
    if count % parallel.expert:
        yield (
            f"expert {parallel.expert} does not divide {count} routed experts: take a number that "
            f"does, such as {_divisor(count, parallel.expert)}"
        )
    ranks = parallel.processes // parallel.pipeline
    if ranks % parallel.expert:
        both = math.gcd(count, ranks)
        yield (
            f"expert {parallel.expert} does not divide the {ranks} ranks of a pipeline stage "
            f"({parallel.processes} processes by pipeline {parallel.pipeline}): take one that "
            f"divides them and the experts, such as {_divisor(both, parallel.expert)}"
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
                f"tensor {size} does not divide the {amount} {what}: take one that does, such as "
                f"{_divisor(amount, size)}"
            )


def _divisor(amount: int, wanted: int) -> int:
    """The divisor of an amount that is the nearest to a number which is none."""
    small = [n for n in range(1, math.isqrt(amount) + 1) if amount % n == 0]
    divisors = {*small, *(amount // n for n in small)}
    return min(divisors, key=lambda n: (abs(math.log(n / wanted)), n))


def _multiples(amount: int, of: int) -> str:
    """The multiples of a number between which an amount lies."""
    below = amount // of * of
    return f"{below} or {below + of}" if below else str(of)
