"""Flags of upstream that a recipe passes on in `megatron_args`."""

from collections.abc import Iterator

from dsv3_plugin.recipe.schema import Recipe


def said_once(recipe: Recipe) -> Iterator[str]:
    """What a key of the recipe says, no flag says otherwise."""
    flags = recipe.passed_flags
    if flags.get("step-batch-size-schedule") or flags.get("global-batch-size"):
        yield "the batch size is curves.batch_size, not a flag in megatron_args"
    if flags.get("allow-ambiguous-pad-tokens"):
        yield (
            "megatron_args: allow-ambiguous-pad-tokens would take ordinary tokens for padding, and "
            "nothing is padded here: leave it out"
        )
    for flag, (key, value) in _said_in_the_recipe(recipe).items():
        if flags.get(flag, False) not in (False, value):
            yield (
                f"megatron_args: {flag} {flags[flag]} contradicts {key}, which is {value}: say it "
                "there, not here"
            )


def _said_in_the_recipe(recipe: Recipe) -> dict[str, tuple[str, int | str | None]]:
    """Flags that a key of the recipe answers for: (key, its value)."""
    parallel = recipe.parallel
    return {
        "tensor-model-parallel-size": ("parallel.tensor", parallel.tensor),
        "pipeline-model-parallel-size": ("parallel.pipeline", parallel.pipeline),
        "pipeline-model-parallel-layout": ("pipeline.layout", recipe.pipeline.layout),
        "context-parallel-size": ("parallel.context", parallel.context),
        "expert-model-parallel-size": ("parallel.expert", parallel.expert),
        "micro-batch-size": ("training.micro_batch_size", recipe.training.micro_batch_size),
        "seq-length": ("data.seq_length", recipe.data.seq_length),
        "transformer-impl": ("backend", recipe.backend),
    }
