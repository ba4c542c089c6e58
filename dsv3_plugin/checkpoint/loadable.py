"""What a trainer has to know of a checkpoint before it loads it. From metadata alone, no torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.checkpoint import tracker
from dsv3_plugin.checkpoint.conversion import trained_length
from dsv3_plugin.checkpoint.formats.dist_metadata import read_contents
from dsv3_plugin.checkpoint.formats.model_file import model_of_checkpoint
from dsv3_plugin.checkpoint.names import EMBEDDING, QUANTISED, layout
from dsv3_plugin.checkpoint.trained_on import TOKENIZER
from dsv3_plugin.data.tokenizer_folder import VOCABULARY_FILES, files_of
from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.places import weights_at

_USUAL_LENGTH = 4096
"""Tokens of a sequence where nothing says how long those were that it was trained on."""


@dataclass(frozen=True)
class Loadable:
    """A checkpoint that can be loaded.

    Attributes:
        folder: with the tracker file, as upstream's `--load` takes it; an absolute path, as that of
            the tokenizer.
        iteration: the folder in it that has the weights.
        model: what it is of.
        dtype: of its weights, as torch names it; `float8_e4m3fn` where FP8 was kept.
        seq_length: tokens of the sequences it was trained on, as far as that is known.
        tokenizer: the folder of its tokenizer; None: it has none.
    """

    folder: Path
    iteration: Path
    model: ModelConfig
    dtype: str
    seq_length: int
    tokenizer: Path | None


def loadable(directory: Path) -> Loadable:
    """The checkpoint in a folder: its own, a run's, or that of an iteration.

    Raises:
        UserError: there is no whole checkpoint.
    """
    directory = weights_at(directory)
    iteration = tracker.find(directory)
    contents, folder = read_contents(iteration), Path(os.path.abspath(iteration.parent))
    model = model_of_checkpoint(directory, iteration, contents)
    embedding = next(entry for entry in layout(model) if entry.name == EMBEDDING)
    kept_fp8 = any(key.endswith(QUANTISED) for key in contents.tensors)
    known = trained_length.of_checkpoint(iteration, contents)
    tokenizer = folder / TOKENIZER
    return Loadable(
        folder,
        iteration,
        model,
        "float8_e4m3fn" if kept_fp8 else contents.tensors[embedding.key].dtype,
        known or min(_USUAL_LENGTH, model.max_position_embeddings),
        tokenizer if files_of(tokenizer, VOCABULARY_FILES) else None,
    )


def tokenizer_beside(directory: Path) -> Path:
    """The folder of the tokenizer of a checkpoint: in its own folder, or beside an iteration.

    Raises:
        UserError: there is no checkpoint, or it has no tokenizer.
    """
    places = _tokenizer_places(directory)
    if (found := tokenizer_or_none(directory)) is None:
        raise UserError(
            f"{places[-1].parent} has no tokenizer, by which text becomes tokens: put the model's "
            f"own tokenizer files (tokenizer.json, tokenizer_config.json) into {places[-1]}."
        )
    return found


def tokenizer_or_none(directory: Path) -> Path | None:
    """The same; None: the checkpoint has no tokenizer."""
    places = _tokenizer_places(directory)
    return next((place for place in places if files_of(place, VOCABULARY_FILES)), None)


def _tokenizer_places(directory: Path) -> list[Path]:
    directory = weights_at(directory)
    return [directory / TOKENIZER, tracker.find(directory).parent / TOKENIZER]
