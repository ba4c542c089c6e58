"""What a trainer has to know of a checkpoint before it loads it. From metadata alone, no torch."""

from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.checkpoint import tracker
from dsv3_plugin.checkpoint.conversion import trained_length
from dsv3_plugin.checkpoint.formats.dist_metadata import read_contents
from dsv3_plugin.checkpoint.formats.model_file import model_of_checkpoint
from dsv3_plugin.checkpoint.names import EMBEDDING, QUANTISED, layout
from dsv3_plugin.checkpoint.trained_on import TOKENIZER
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.places import weights_at

_USUAL_LENGTH = 4096
"""Tokens of a sequence where nothing says how long those were that it was trained on."""


@dataclass(frozen=True)
class Loadable:
    """A checkpoint that can be loaded.

    Attributes:
        folder: with the tracker file, as upstream's `--load` takes it.
        model: what it is of.
        dtype: of its weights, as torch names it; `float8_e4m3fn` where FP8 was kept.
        seq_length: tokens of the sequences it was trained on, as far as that is known.
        tokenizer: the folder of its tokenizer; None: it has none.
    """

    folder: Path
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
    contents, folder = read_contents(iteration), iteration.parent
    model = model_of_checkpoint(directory, iteration, contents)
    embedding = next(entry for entry in layout(model) if entry.name == EMBEDDING)
    kept_fp8 = any(key.endswith(QUANTISED) for key in contents.tensors)
    known = trained_length.of_checkpoint(iteration, contents)
    tokenizer = folder / TOKENIZER
    return Loadable(
        folder,
        model,
        "float8_e4m3fn" if kept_fp8 else contents.tensors[embedding.key].dtype,
        known or min(_USUAL_LENGTH, model.max_position_embeddings),
        tokenizer if any(tokenizer.glob("*")) else None,
    )
