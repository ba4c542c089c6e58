"""The files of a Hugging Face tokenizer: which they are, copying them, telling two apart.

No code is among them: a tokenizer that needs its own is refused where it is opened.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from dsv3_plugin.files.links import inside
from dsv3_plugin.recipe.places import data_at, weights_at

VOCABULARY_FILES = (
    "tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json", "merges.txt",
    "added_tokens.json",
)  # fmt: skip
"""What decides which id a token has."""

TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def files_of(folder: Path, names: Iterable[str] = TOKENIZER_FILES) -> dict[str, Path]:
    """Name → path of a tokenizer's files that are there.

    Raises:
        UserError: one is a link that leads out of the folder.
    """
    paths = {name: inside(folder, name) for name in names}
    return {name: path for name, path in paths.items() if path.is_file()}


def tokenizer_at(path: Path) -> Path:
    """The folder of a tokenizer that is meant: what was named, or one that weights, a run or a
    dataset have.

    Raises:
        UserError: as `files_of`; the recipe of a run cannot be read.
    """
    if files_of(path, VOCABULARY_FILES):
        return path
    weights, data = weights_at(path), data_at(path)
    # An iteration's lies beside it; of a mixture's datasets all have the same.
    around = (weights, weights.parent, data, *sorted(data.glob("member*")))
    folders = (place / "tokenizer" for place in around)
    return next((folder for folder in folders if files_of(folder, VOCABULARY_FILES)), path)


def copy_tokenizer(source: Path, target: Path, names: Iterable[str] = TOKENIZER_FILES) -> None:
    """Copy the tokenizer's files, and nothing else of the folder, to a new folder.

    Raises:
        UserError: as `files_of`.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name, path in files_of(source, names).items():
        (target / name).write_bytes(path.read_bytes())


def digests(folder: Path, names: Iterable[str] = VOCABULARY_FILES) -> dict[str, str]:
    """Name → digest of the files that are there; empty where there is no tokenizer.

    Raises:
        UserError: as `files_of`.
    """
    return {
        name: hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for name, path in files_of(folder, names).items()
    }
