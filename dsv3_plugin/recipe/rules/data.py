"""Sequences, and what is kept for evaluation."""

from collections.abc import Iterator

from dsv3_plugin.recipe.schema import Recipe


def sequence(recipe: Recipe) -> Iterator[str]:
    """The model has positions for the sequence, and context parallelism divides it."""
    length, context = recipe.data.seq_length, recipe.parallel.context
    if length > recipe.model.max_position_embeddings:
        yield (
            f"data.seq_length {length} is more than the model's "
            f"{recipe.model.max_position_embeddings} positions (max_position_embeddings)"
        )
    if context > 1 and length % (2 * context):
        yield f"data.seq_length {length} does not divide by twice context {context}"


def evaluation(recipe: Recipe) -> Iterator[str]:
    """There is something to evaluate on."""
    interval = recipe.training.eval_interval
    if interval is not None and recipe.data.held_out == 0:
        yield (
            f"training.eval_interval {interval} needs held-out documents: give data.held_out a "
            "share above 0, or set training.eval_interval to null"
        )
