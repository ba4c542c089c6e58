"""What a run's checkpoint folder carries beside upstream's files, and how many are kept.

`model.yaml`, `tokenizer/` and `recipe.yaml` stand there before the first checkpoint does, so that
`logits`, `generate` and `export` need nothing but the folder. No torch here.
"""

import shutil
from pathlib import Path

from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.recipe.schema import Recipe


def write_description(recipe: Recipe, tokenizer: Path) -> None:
    """Write what a run's checkpoints are of into their folder.

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
        shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)


def retire(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` iterations."""
    iterations = sorted(folder.glob("iter_*"), key=lambda path: int(path.name[5:]))
    for old in iterations[:-keep]:
        shutil.rmtree(old)
