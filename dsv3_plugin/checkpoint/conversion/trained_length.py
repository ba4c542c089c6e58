"""How long the sequences were that weights were trained on. No torch here.

A model may have positions that it was never trained at, so that `max_position_embeddings` does not
tell. What tells is upstream's arguments in a checkpoint that training saved, and the manifest of
what was converted from one, in either direction.
"""

from pathlib import Path

from dsv3_plugin.checkpoint.conversion import manifest_file
from dsv3_plugin.checkpoint.formats.dist_metadata import Contents
from dsv3_plugin.checkpoint.formats.model_file import saved_arguments


def of_checkpoint(folder: Path, contents: Contents) -> int | None:
    """Tokens of the sequences behind the iteration, or release, in `folder`; None: unknown.

    Raises:
        ForeignSymbolError: what the arguments are pickled with names what could run code.
    """
    arguments = saved_arguments(folder, contents)
    if arguments is None:
        return of_conversion(folder.parent)
    return _length(arguments.get("seq_length"))


def of_conversion(root: Path) -> int | None:
    """The same of what a conversion wrote: a Hugging Face folder, or the folder of a release."""
    return _length(manifest_file.read(root).get(manifest_file.TRAINED_LENGTH))


def _length(said: object) -> int | None:
    return said if type(said) is int and said > 0 else None
