"""How many ids the tokenizer of a recipe has, as far as its files say so by themselves."""

import json
from pathlib import Path

import tokenizers

from dsv3_plugin.data.tokenizer_folder import files_of, tokenizer_at
from dsv3_plugin.files.json_text import read_plain
from dsv3_plugin.files.named import named
from dsv3_plugin.recipe.continued import PARENT
from dsv3_plugin.recipe.schema import Recipe

_WHOLE, _CONFIG = "tokenizer.json", "tokenizer_config.json"


def ids_of(recipe: Recipe) -> int | None:
    """Rows of an embedding that a recipe's tokenizer needs: its highest id plus one.

    Returns:
        None where no folder of it is here, or where its files have to be made a tokenizer of first,
        which takes transformers: those without tokenizer.json.
    """
    choice = recipe.data.tokenizer
    if not isinstance(choice, str) or choice == PARENT:
        return None
    try:
        files = files_of(tokenizer_at(named(choice)))
        return _highest(files) + 1 if _WHOLE in files else None
    except Exception:  # whoever opens it says what is wrong; tokenizers raises no special errors
        return None


def _highest(files: dict[str, Path]) -> int:
    backend = tokenizers.Tokenizer.from_file(str(files[_WHOLE]))
    ids = [*backend.get_vocab(with_added_tokens=True).values()]
    if _CONFIG in files:
        said = json.loads(read_plain(files[_CONFIG])).get("added_tokens_decoder", {})
        ids += [int(number) for number in said]
    return max(ids)
