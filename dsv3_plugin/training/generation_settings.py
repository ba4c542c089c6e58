"""By which tokens the answer of a fine-tuned model ends: its `generation_config.json`.

It lies with the tokenizer and travels with the weights. A chat template may end a turn by another
token than ends a document, and a model that learned that one has to be stopped by it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv3_plugin.checkpoint.conversion.tokenizer_files import (
    GENERATION_CONFIG,
    end_ids,
    read_json,
    token_ids,
)
from dsv3_plugin.data.chat.template import ChatTemplate, open_template
from dsv3_plugin.data.tokenizer import TextTokenizer, open_tokenizer


def write_generation_settings(tokenizer: Path, arguments: Mapping[str, Any]) -> None:
    """Write the tokens that end an answer into a tokenizer's folder, beside what is said there.

    Args:
        tokenizer: a folder with the chat template that was trained with.
        arguments: what that is told beside a conversation.
    """
    opened = open_tokenizer(tokenizer)
    turn = end_of_turn(open_template(tokenizer, None, arguments, "all"), opened)
    ends = dict.fromkeys(
        [*([] if turn is None else [turn]), *sorted(end_ids(tokenizer, opened.eos_id))]
    )
    one, *more = ends
    said = {
        **read_json(tokenizer / GENERATION_CONFIG),
        **token_ids(tokenizer),
        "eos_token_id": [one, *more] if more else one,
    }
    (tokenizer / GENERATION_CONFIG).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def end_of_turn(template: ChatTemplate, tokenizer: TextTokenizer) -> int | None:
    """The special token by which a template ends a turn of the assistant; None: it has none."""
    added = tokenizer.backend.get_added_tokens_decoder()
    behind = tokenizer.backend.encode(template.ending(), add_special_tokens=False).ids
    return next((token for token in behind if token in added and added[token].special), None)
