"""Evaluations of a checkpoint: the model is loaded, and what it is asked is made."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import torch

from dsv3_plugin.errors import UserError
from dsv3_plugin.evaluation.checkpoint import Coder, Evaluated, Place
from dsv3_plugin.evaluation.held_out import TokenSet, held_out_sets, sequence_length_of
from dsv3_plugin.evaluation.loss import Losses, LossesOf, losses_on
from dsv3_plugin.evaluation.needle import Found, Setting, find_needles
from dsv3_plugin.evaluation.texts import texts_for
from dsv3_plugin.inference.from_checkpoint import refuse_unknown_tokens
from dsv3_plugin.inference.logits import next_token_losses

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


def losses_of_checkpoint(
    checkpoint: Path,
    *,
    changes: Sequence[str] = (),
    data: str | None = None,
    seq_length: int | None = None,
    most: int = 64,
    progress: Progress | None = None,
) -> list[Losses]:
    """The losses of a checkpoint on what it was not trained on, a set at a time.

    Args:
        checkpoint: the folder of a run, or of checkpoints.
        changes: of the model's positions, `model.KEY=VALUE`.
        data: what to read (see `held_out_sets`).
        seq_length: tokens of a sequence; None: as the run trained, or what the model has positions.
        most: sequences of a set.
        progress: told after every sequence.

    Raises:
        UserError: the checkpoint or the data cannot be read, or sequences are longer than either.
    """
    place = Place.named(checkpoint)
    sets = held_out_sets(place, data)
    evaluated = Evaluated.load(place, changes)
    longest = evaluated.config.max_position_embeddings
    trained_at = None if place.run is None else sequence_length_of(place.run)
    length = seq_length or trained_at or longest
    if length > longest:
        raise UserError(
            f"sequences of {length:,} tokens are beyond the model's {longest:,} positions "
            f"(max_position_embeddings): ask shorter ones with --seq-length, or see what it does "
            f"there with model.max_position_embeddings={length}"
        )
    starts = [one.sequences(length, most) for one in sets]

    def losses(one: TokenSet, firsts: list[int]) -> Losses:
        def tell(done: int) -> None:
            if progress is not None:
                progress(one.name, done, len(firsts))

        sequences = (one.sequence(first, length + 1) for first in firsts)
        return losses_on(one.name, sequences, losses_of(evaluated, one.name), tell)

    return [losses(*each) for each in zip(sets, starts, strict=True)]


def losses_of(evaluated: Evaluated, name: str) -> LossesOf:
    """The function that computes a model's losses.

    Args:
        evaluated: the model.
        name: what its tokens are of, for the sentence about those that it does not know.
    """

    def losses(tokens: numpy.ndarray) -> numpy.ndarray:
        if tokens.max() >= evaluated.config.vocab_size or tokens.min() < 0:
            raise UserError(
                f"{name} holds token {tokens.max()}, and the model knows 0 to "
                f"{evaluated.config.vocab_size - 1}: it was encoded by another tokenizer"
            )
        ids = torch.from_numpy(tokens)[None]
        return next_token_losses(evaluated.model, ids)[0].cpu().numpy()

    return losses
