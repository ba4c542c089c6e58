"""What a run's checkpoint folder carries beside upstream's files, and how many are kept.

`model.yaml`, `tokenizer/`, `recipe.yaml` and `trained_on.json` stand there before the first
checkpoint does, so that `logits`, `generate` and `export` need nothing but the folder. No torch
here.
"""

import shutil
from pathlib import Path
from typing import Protocol

from dsv3_plugin.checkpoint import trained_on
from dsv3_plugin.checkpoint.conversion.config_json import HF_CONFIG
from dsv3_plugin.checkpoint.conversion.tokenizer_files import CARRIED
from dsv3_plugin.checkpoint.trained_on import TOKENIZER, TrainedOn
from dsv3_plugin.data.chat.template import TEMPLATE_FILE
from dsv3_plugin.data.tokenizer_folder import copy_tokenizer, digests
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.folders import whole_folder
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.files.links import inside
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sections import Data
from dsv3_plugin.training.generation_settings import write_generation_settings


class Described(Protocol):
    """What checkpoints are trained on, by digests, with the tokenizer's folder."""

    @property
    def corpus_digest(self) -> str: ...

    @property
    def tokenizer_digest(self) -> str: ...

    @property
    def tokenizer_dir(self) -> Path: ...


def write_description(recipe: Recipe, data: Described, weights: Path | None) -> None:
    """Write what a run's checkpoints are of into their folder.

    Args:
        recipe: the run's.
        data: what it trains on.
        weights: the folder that describes those which it begins with, its own or its parent's; None
            where it begins without. Their tokenizer stays, with whatever came with it, as it has
            been found to be the data's, and so does the `config.json` that they were imported with.

    Raises:
        UserError: it cannot be written.
    """
    folder = recipe.checkpoint_folder
    with write_errors_as(
        lambda reason: (
            f"the checkpoint folder {folder} cannot be written ({reason}): make room, or choose "
            f"another with checkpoint.directory=PATH."
        )
    ):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "model.yaml", recipe.model.to_yaml().encode())
        replace_file(folder / "recipe.yaml", recipe.to_yaml().encode())
        _carry(weights, folder, data, recipe.data)
        tokenizer = inside(folder, TOKENIZER)
        trained_on.write(
            folder,
            TrainedOn(
                corpus=data.corpus_digest,
                tokenizer=data.tokenizer_digest,
                vocabulary=digests(tokenizer),
            ),
        )


def _carry(weights: Path | None, folder: Path, data: Described, settings: Data) -> None:
    """Put what goes with weights beside those that will be trained from them.

    A model that is trained on conversations is asked as it was trained: by that template, until its
    turn ends.
    """
    theirs = None if weights is None else inside(weights, TOKENIZER)
    if weights == folder and digests(theirs):
        return
    with whole_folder(folder / TOKENIZER) as new:
        if theirs is not None and digests(theirs):
            copy_tokenizer(theirs, new, CARRIED)
        else:
            copy_tokenizer(data.tokenizer_dir, new)
        if settings.packing == "conversations":
            copy_tokenizer(data.tokenizer_dir, new, (TEMPLATE_FILE,))
            write_generation_settings(new, settings.template_arguments)
    if weights in (None, folder):
        return
    if inside(weights, HF_CONFIG).is_file():
        replace_file(folder / HF_CONFIG, inside(weights, HF_CONFIG).read_bytes())
    else:  # another parent's, with whose weights nothing was trained
        (folder / HF_CONFIG).unlink(missing_ok=True)


def retire(folder: Path, keep: int, newest: int) -> None:
    """Remove all iterations but the newest `keep` that are whole.

    Args:
        folder: where they lie.
        keep: how many stay.
        newest: the newest that is whole; what is newer still is being written.
    """
    numbered = {int(path.name[5:]): path for path in folder.glob("iter_*")}
    settled = sorted((n for n in numbered if n <= newest), reverse=True)
    # Upstream writes metadata.json last: what lacks it is what a killed save left behind.
    whole = [n for n in settled if (numbered[n] / "metadata.json").exists()]
    for iteration in settled:
        if iteration not in whole[:keep]:
            shutil.rmtree(numbered[iteration])
