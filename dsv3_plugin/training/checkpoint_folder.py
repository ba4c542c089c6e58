"""What a run's checkpoint folder carries beside upstream's files, and how many are kept.

`model.yaml`, `tokenizer/`, `recipe.yaml` and `trained_on.json` stand there before the first
checkpoint does, so that `logits`, `generate` and `export` need nothing but the folder. No torch
here.
"""

import shutil
from pathlib import Path

from dsv3_plugin.checkpoint import trained_on
from dsv3_plugin.checkpoint.trained_on import TOKENIZER, TrainedOn
from dsv3_plugin.data.run_data import RunData
from dsv3_plugin.data.tokenizer_folder import copy_tokenizer, digests
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.folders import whole_folder
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.files.links import inside
from dsv3_plugin.recipe.schema import Recipe


def write_description(recipe: Recipe, data: RunData, *, has_weights: bool) -> None:
    """Write what a run's checkpoints are of into their folder.

    Args:
        recipe: the run's.
        data: what it trains on.
        has_weights: whether there are checkpoints already; their tokenizer stays, with whatever
            came with it, as it has been found to be the data's.

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
        tokenizer = inside(folder, TOKENIZER) if has_weights else folder / TOKENIZER
        if not (has_weights and digests(tokenizer)):
            with whole_folder(tokenizer) as new:
                copy_tokenizer(data.tokenizer_dir, new)
        trained_on.write(
            folder,
            TrainedOn(
                corpus=data.corpus_digest,
                tokenizer=data.tokenizer_digest,
                vocabulary=digests(tokenizer),
            ),
        )


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
