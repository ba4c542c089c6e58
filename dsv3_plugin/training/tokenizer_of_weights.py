"""Weights know a tokenizer's tokens by their ids: another tokenizer's mean nothing to them."""

from pathlib import Path

from dsv3_plugin.checkpoint.trained_on import TOKENIZER
from dsv3_plugin.data.tokenizer import TextTokenizer, open_tokenizer
from dsv3_plugin.data.tokenizer_folder import VOCABULARY_FILES, files_of
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.links import inside


def refuse_another_tokenizer(folder: Path, tokenizer: TextTokenizer) -> None:
    """Look whether weights in a checkpoint folder know a tokenizer's tokens by their ids.

    Raises:
        UserError: the folder has another tokenizer.
    """
    own = inside(folder, TOKENIZER)
    if not files_of(own, VOCABULARY_FILES):
        return
    way_out = (
        f"take theirs with data.tokenizer={own}, or remove that folder first if the weights are to "
        f"learn another one"
    )
    try:
        theirs = open_tokenizer(own)
    except UserError as error:
        reason = str(error).rstrip(".")
        raise UserError(
            f"whether the weights in {folder} belong to {tokenizer} cannot be told ({reason}): "
            f"{way_out}."
        ) from error
    if theirs.digest != tokenizer.digest:
        raise UserError(
            f"the weights in {folder} belong to another tokenizer than the recipe's: {way_out}."
        )
