"""The tokenizer's files, which travel with the weights, and the ids of its special tokens."""

from pathlib import Path
from typing import Any

from dsv3_plugin.data.tokenizer_folder import TOKENIZER_FILES
from dsv3_plugin.files import json_text
from dsv3_plugin.files.links import inside

GENERATION_CONFIG = "generation_config.json"
"""How a model is asked, and by which tokens its answer ends."""

CARRIED = (*TOKENIZER_FILES, GENERATION_CONFIG)
"""What of it travels with the weights."""

_SPECIAL = ("bos", "eos", "pad")

TOKEN_IDS = frozenset(f"{kind}_token_id" for kind in _SPECIAL)
"""The keys of `config.json` that are the tokenizer's."""


def token_ids(tokenizer: Path) -> dict[str, int]:
    """Ids of the beginning, end and padding tokens, as far as the tokenizer's folder tells."""
    generation = read_json(inside(tokenizer, GENERATION_CONFIG))
    config = read_json(inside(tokenizer, "tokenizer_config.json"))
    added = read_json(inside(tokenizer, "tokenizer.json")).get("added_tokens")
    known = {
        token.get("content"): token.get("id")
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and isinstance(token.get("content"), str)
    }
    ids = {}
    for kind in _SPECIAL:
        token = config.get(f"{kind}_token")
        token = token.get("content") if isinstance(token, dict) else token
        by_name = known.get(token) if isinstance(token, str) else None
        found = generation.get(f"{kind}_token_id", by_name)
        if found is not None:
            ids[f"{kind}_token_id"] = found
    return ids


def end_ids(tokenizer: Path, eos_id: int) -> frozenset[int]:
    """The tokens that end what a model says, as transformers takes them.

    Args:
        tokenizer: its folder, with a `generation_config.json` perhaps.
        eos_id: the token that ends a document, where that says nothing.
    """
    said = token_ids(tokenizer).get("eos_token_id")
    ids = [one for one in (said if isinstance(said, list) else [said]) if isinstance(one, int)]
    return frozenset(ids or [eos_id])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one if there is none to read."""
    try:
        return json_text.read_object(path)
    except (OSError, ValueError):
        return {}
