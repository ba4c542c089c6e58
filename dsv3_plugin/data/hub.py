"""Tokenizers by their names on Hugging Face's hub: `deepseek-ai/DeepSeek-V3`.

What has been downloaded once is taken from the cache without asking the hub again, so that a run
goes on with the tokenizer it began with. The tokenizer's files alone are downloaded, never code.
"""

import re
from collections.abc import Callable
from pathlib import Path

from dsv3_plugin.data.tokenizer_folder import TOKENIZER_FILES, VOCABULARY_FILES, tokenizer_at
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.terminal.lines import note

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_PATIENCE_S = 10


def tokenizer_folder_of(choice: str) -> Path:
    """The folder of a tokenizer: what is named, or what the hub has under that name.

    Args:
        choice: a path, also of weights, a run or a dataset that has one; or `owner/name` where
            there is no such folder here.

    Raises:
        UserError: there is no such folder, and the hub has none or cannot be asked.
    """
    folder = named(choice)
    if folder.exists() or not _NAME.fullmatch(choice):
        return tokenizer_at(folder)
    from huggingface_hub import snapshot_download  # brings a lot

    wanted = {"repo_id": choice, "allow_patterns": list(TOKENIZER_FILES)}
    cached = _tried(lambda: snapshot_download(**wanted, local_files_only=True))
    if isinstance(cached, Path):
        return cached
    note(f"Asking Hugging Face's hub for the tokenizer {choice}.")
    found = _tried(lambda: snapshot_download(**wanted, etag_timeout=_PATIENCE_S))
    if isinstance(found, Path):
        return found
    raise UserError(
        f"there is no folder {choice}, and a tokenizer of that name could not be had from Hugging "
        f"Face's hub ({found}): name a folder, or download it first where there is a network "
        f'(hf download {choice} --include "*token*" --local-dir tokenizer) and name that one.'
    )


def _tried(download: Callable[[], str]) -> Path | str:
    """The folder with a vocabulary, or why there is none."""
    try:
        folder = Path(download())
    except Exception as error:  # whatever HTTP, proxies, caches and disks raise
        return _why(error)
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        return "it holds no tokenizer"
    return folder


def _why(error: Exception) -> str:
    """The kind of what went wrong; what the hub says of it has many lines."""
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "its owner has to let you in: log in with hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return "there is none, or none that you may see"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return "it cannot be reached"
