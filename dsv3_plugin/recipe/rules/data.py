"""Sequences, and what is kept for evaluation."""

from collections.abc import Iterator

from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.continued import PARENT, Continued
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sections import TrainedTokenizer


def sequence(recipe: Recipe) -> Iterator[str]:
    """The model has positions for the sequence, and context parallelism divides it."""
    length, context, model = recipe.data.seq_length, recipe.parallel.context, recipe.model
    if length > model.max_position_embeddings:
        yield (
            f"data.seq_length {length} is more than the model's "
            f"{model.max_position_embeddings} positions (max_position_embeddings)"
        )
    original, factor = model.original_max_position_embeddings, model.rotary_scaling_factor
    if model.rope_type == "yarn" and length > original * factor:
        yield (
            f"data.seq_length {length} is more than the {original * factor:.0f} positions that "
            f"YaRN reaches from {original} by {factor:g}: raise model.rotary_scaling_factor"
        )
    if context > 1 and length % (2 * context):
        yield f"data.seq_length {length} does not divide by twice context {context}"


def tokenizer(recipe: Recipe) -> Iterator[str]:
    """The tokenizer of a parent's weights needs a parent."""
    if recipe.data.tokenizer == PARENT and not isinstance(recipe, Continued):
        yield (
            f"data.tokenizer: {PARENT} is for stages that begin with another run's weights, and "
            f"the stage is {recipe.stage}: name a tokenizer's folder, or bpe:SIZE"
        )


def evaluation(recipe: Recipe) -> Iterator[str]:
    """There is something to evaluate on."""
    interval = recipe.training.eval_interval
    if interval is not None and recipe.data.held_out == 0:
        yield (
            f"training.eval_interval {interval} needs held-out documents: give data.held_out a "
            "share above 0, or set training.eval_interval to null"
        )


def mixture(recipe: Recipe) -> Iterator[str]:
    """The members of a mixture are different, have weights or not, and one is drawn from; what is
    encoded already brings its tokenizer."""
    data = recipe.data
    yield from corpora.wrong_with(data.corpus)
    encoded = [member for member in corpora.members(data.corpus) if member.prefix is not None]
    if encoded and isinstance(data.tokenizer, TrainedTokenizer):
        yield (
            f"{encoded[0]} is encoded already, so no tokenizer can be trained on it: name the "
            f"folder of the one that encoded it with data.tokenizer"
        )
