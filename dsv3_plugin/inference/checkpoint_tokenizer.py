"""The tokenizer of a checkpoint."""

from pathlib import Path

from dsv3_plugin.checkpoint import trained_on
from dsv3_plugin.checkpoint.loadable import tokenizer_beside
from dsv3_plugin.data.tokenizer import TextTokenizer, open_tokenizer


def tokenizer_of_checkpoint(checkpoint: Path) -> TextTokenizer:
    """The tokenizer that a model was trained with, from beside its checkpoint.

    Raises:
        UserError: there is none, or it is another.
    """
    folder = tokenizer_beside(checkpoint)
    trained_on.refuse_replaced_tokenizer(folder.parent)
    return open_tokenizer(folder)
