"""What works, and a person would regret later: said before a run begins, never refused."""

from collections.abc import Callable, Iterator

from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sections import TrainedTokenizer

_PADDED_TO = 128
"""Up to so many ids more than a tokenizer has are upstream's padding
(`--make-vocab-size-divisible-by`)."""


def regrets(recipe: Recipe) -> list[str]:
    """A sentence for each thing in a recipe that its author may not have meant."""
    return [sentence for look in _LOOKS for sentence in look(recipe)]


def _curves_beyond_the_end(recipe: Recipe) -> Iterator[str]:
    """Curves that were written for a longer run: their last pieces are never reached."""
    reached = {}
    for name in ("learning_rate", "batch_size", "router_bias_speed", "mtp_weight"):
        starts = [segment.start for segment in getattr(recipe.curves, name).segments]
        if (begun := sum(start < recipe.total_tokens for start in starts)) < len(starts):
            reached[name] = f"{name} {begun} of {len(starts)}"
    if reached:
        yield (
            f"the run ends in the middle of its curves (pieces begun: {', '.join(reached.values())}"
            "): lengths that are shares of it (for: 10%) give a shorter run the same shape"
        )


def _intervals_beyond_the_end(recipe: Recipe) -> Iterator[str]:
    """What happens every so many steps, and so never."""
    every, steps = recipe.training.eval_interval, recipe.total_steps
    if every is not None and every > steps:
        yield (
            f"training.eval_interval {every:,} is more than the {steps:,} steps there are: nothing "
            f"is evaluated between the first and the last"
        )


def _small_tokenizer(recipe: Recipe) -> Iterator[str]:
    """Rows of the embedding and of the head that no text ever uses."""
    tokenizer, vocabulary = recipe.data.tokenizer, recipe.model.vocab_size
    if isinstance(tokenizer, TrainedTokenizer) and tokenizer.vocab_size + _PADDED_TO <= vocabulary:
        yield (
            f"data.tokenizer has {tokenizer.vocab_size:,} ids and the model {vocabulary:,}: the "
            f"rest are never used, and cost as much; model.vocab_size={tokenizer.vocab_size} "
            f"leaves them out"
        )


_LOOKS: tuple[Callable[[Recipe], Iterator[str]], ...] = (
    _curves_beyond_the_end,
    _intervals_beyond_the_end,
    _small_tokenizer,
)
