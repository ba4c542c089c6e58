"""How the work is divided among processes."""

from collections.abc import Iterator

from dsv3_plugin.recipe.schema import Recipe


def processes(recipe: Recipe) -> Iterator[str]:
    """The model-parallel sizes divide the processes."""
    parallel = recipe.parallel
    together = parallel.tensor * parallel.pipeline * parallel.context
    if parallel.processes % together:
        yield (
            f"{parallel.processes} processes do not divide by tensor {parallel.tensor} × "
            f"pipeline {parallel.pipeline} × context {parallel.context} = {together}"
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
        yield f"expert {parallel.expert} does not divide {count} routed experts"
    ranks = parallel.processes // parallel.pipeline
    if ranks % parallel.expert:
        yield f"expert {parallel.expert} does not divide the {ranks} ranks of a pipeline stage"


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
            yield f"tensor {size} does not divide the {amount} {what}"
