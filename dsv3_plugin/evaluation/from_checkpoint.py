"""Evaluations of a checkpoint: the model is loaded, and what it is asked is made."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dsv3_plugin.evaluation.checkpoint import Coder, Evaluated, Place
from dsv3_plugin.evaluation.needle import Found, Setting, find_needles
from dsv3_plugin.evaluation.texts import texts_for
from dsv3_plugin.inference.from_checkpoint import refuse_unknown_tokens

Progress = Callable[[str, int, int | None], None]
"""Called with a phase of the work, what is done of it, and of how much where that is known."""


def needles_of_checkpoint(
    checkpoint: Path,
    setting: Setting,
    changes: Sequence[str] = (),
    corpus: str | None = None,
    progress: Progress | None = None,
) -> tuple[Found, str]:
    """Ask a checkpoint for facts in real text.

    Args:
        checkpoint: the folder of a run, or of checkpoints.
        setting: what is asked.
        changes: of the model's positions, `model.KEY=VALUE`.
        corpus: the text (see `texts_for`).
        progress: told after every question.

    Returns:
        What was found, and what the text is.

    Raises:
        UserError: the checkpoint, its tokenizer or the text cannot be read, or what is asked cannot
            be asked of it.
    """
    place = Place.named(checkpoint)
    coder = Coder.of(place)
    evaluated = Evaluated.load(place, changes)
    setting.refuse_beyond(evaluated.config.max_position_embeddings)
    most = max(setting.lengths) * setting.samples
    haystack = texts_for(place, corpus, setting.seed).haystack(coder, most)
    refuse_unknown_tokens(haystack.tokens, coder.tokenizer, evaluated.config)

    def proceed(tokens: Sequence[int], count: int) -> list[int]:
        return evaluated.proceed(tokens, count, coder.tokenizer.eos_id)

    def tell(asked: int) -> None:
        if progress is not None:
            progress("asking", asked, setting.questions)

    return find_needles(setting, haystack, proceed, tell), haystack.name
