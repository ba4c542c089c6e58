"""What a recipe says otherwise than the one a run was started with last. No torch here."""

import os
from pathlib import Path
from typing import Any

from dsv3_plugin.data.dataset_folder import other_data
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.recipe import corpora, yaml_text
from dsv3_plugin.recipe.continued import Continued
from dsv3_plugin.recipe.differences import flat
from dsv3_plugin.recipe.schema import Recipe

_KEPT = {
    "data.seq_length": "by which the curves count their tokens",
    "data.packing": "by which its sequences are filled",
    "data.long_document_share": "by which its documents are drawn",
    "data.long_document": "by which its documents are drawn",
    "training.seed": "by which the order of its data was drawn",
    "parallel.zero1": "whose optimizer states do not go over",
    "from": "whose weights it began with",
}
"""A run keeps them for as long as it lasts, for these reasons."""

_KEPT_OF_CONVERSATIONS = {
    "parallel.context": "to multiples of which its conversations are padded, and so packed",
    "training.epochs": "behind the last of which its last batch was filled up",
    "mtp": "by which it has optimizer states of those layers",
    "router": "by which it has optimizer states of the routers",
}
"""And these, where conversations are packed."""

_DATA = ("corpus", "text_key", "fim_rate", "held_out", "tokenizer.vocab_size")
"""Of these its data are made."""

_FREE = ("curves.", "optimizer.", "precision.", "data.", "megatron_args.", "dispatch.precision")
"""What else decides its numbers, and may change on the way."""


def refuse_other_settings(recipe: Recipe, *, data: bool = True) -> None:
    """Look whether the checkpoints in a recipe's folder can go on, or be done, as it says.

    Args:
        recipe: of the run.
        data: whether its data are read, too; a plan reads none.

    Raises:
        UserError: they cannot; the sentence says what to restore.
    """
    _refuse_its_own_parent(recipe)
    changed = _changed(recipe)
    of_conversations = recipe.data.packing in ("conversations", "prompts")
    for key, why in (_KEPT | (_KEPT_OF_CONVERSATIONS if of_conversations else {})).items():
        if key in changed:
            before, _ = changed[key]
            raise UserError(
                f"{recipe.checkpoint_folder} was written with {key}: {_text(before)}, {why}: "
                f"restore it, or choose another folder with directory=PATH."
            )
    for key in (f"data.{name}" for name in _DATA):
        if data and key in changed:
            before, now = changed[key]
            if key == "data.corpus":
                before, now = corpora.text(before), corpora.text(now)
            raise other_data(recipe.data_folder, key, before, now)


def _refuse_its_own_parent(recipe: Recipe) -> None:
    """Look whether the folder is that of the run that a stage begins with.

    A recipe is called as its file, so `sft/mine.yaml` has the folder of `pretrain/mine.yaml`.
    """
    if not isinstance(recipe, Continued):
        return
    begins_with = Path(os.path.realpath(named(recipe.from_)))
    own = {os.path.realpath(place) for place in (recipe.run_folder.root, recipe.checkpoint_folder)}
    if own.isdisjoint(map(str, (begins_with, begins_with.parent))):
        return
    before = _at_the_last_start(recipe).get("from")
    if before is None or not corpora.same(before, recipe.from_):
        raise UserError(
            f"from: {recipe.from_} is in {recipe.run_folder.root}, where this run would be written "
            f"too: choose another folder for it with directory=PATH."
        )


def other_numbers(recipe: Recipe) -> list[str]:
    """Keys that decide a run's numbers and say otherwise than when it was started last."""
    return [key for key in _changed(recipe) if key.startswith(_FREE) and key != "data.path"]


def _changed(recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Key → its value at the last start, and now; a key that was not known then is no change."""
    before = _at_the_last_start(recipe)
    if not before:
        return {}
    before = {"data.packing": "stream"} | flat(before)
    now = flat(yaml_text.parse(recipe.to_yaml(), "the recipe"))
    return {
        key: (before[key], value)
        for key, value in now.items()
        if key in before and not _same(key, before[key], value)
    }


def _at_the_last_start(recipe: Recipe) -> dict[str, Any]:
    """What the run's recipe said then; empty where nothing says."""
    description = recipe.checkpoint_folder / "recipe.yaml"
    return yaml_text.read_mapping(description) if description.exists() else {}


def _same(key: str, before: Any, now: Any) -> bool:
    # A run started from a script with an absolute path goes on by hand with a relative one.
    return before == now or (key in ("data.corpus", "from") and corpora.same(before, now))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
