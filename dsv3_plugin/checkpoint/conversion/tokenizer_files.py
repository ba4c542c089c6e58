"""The tokenizer's files, which travel with the weights, and the ids of its special tokens."""

import json
from pathlib import Path
from typing import Any

from dsv3_plugin.files.atomic import replace_file

TOKENIZER = "tokenizer"
"""Their folder in a checkpoint."""

TOKENIZER_FILES = (
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
    "merges.txt", "special_tokens_map.json", "tiktoken.model", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "vocab.json",
)  # fmt: skip
"""No code (`*.py`), as transformers needs none for this family."""

_SPECIAL = ("bos", "eos", "pad")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the files of a tokenizer that are there."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            replace_file(folder / name, (source / name).read_bytes())


def token_ids(tokenizer: Path) -> dict[str, int]:
    """Ids of the beginning, end and padding tokens, as far as the tokenizer's folder tells."""
    generation = _read_json(tokenizer / "generation_config.json")
    config = _read_json(tokenizer / "tokenizer_config.json")
    known = {
        token["content"]: token["id"]
        for token in _read_json(tokenizer / "tokenizer.json").get("added_tokens") or ()
    }
    ids = {}
    for kind in _SPECIAL:
        token = config.get(f"{kind}_token")
        token = token.get("content") if isinstance(token, dict) else token
        found = generation.get(f"{kind}_token_id", known.get(token))
        if found is not None:
            ids[f"{kind}_token_id"] = found
    return ids


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one if there is none to read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
