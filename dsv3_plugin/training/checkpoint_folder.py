"""What a run's checkpoint folder carries beside upstream's files, and how many are kept.

`model.yaml`, `tokenizer/` and `recipe.yaml` stand there before the first checkpoint does, so that
`logits`, `generate` and `export` need nothing but the folder. No torch here.
"""

import shutil
from pathlib import Path

from dsv3_plugin.checkpoint import tracker
from dsv3_plugin.checkpoint.inspect import first_misfit
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.schema import Recipe


def refuse_another_model(recipe: Recipe) -> None:
    """Look whether the checkpoints in a recipe's folder are of its model; names may differ.

    Upstream's own checkpoints bring no description: of those, the tensors are compared.

    Raises:
        UserError: they are not; it names the first field, or tensor, in which the models differ.
    """
    folder, wanted = recipe.checkpoint_folder, recipe.model
    description = folder / "model.yaml"
    if not any([*folder.glob("iter_*"), *folder.glob("release")]):
        return
    if not description.exists():
        saved = tracker.newest_complete(folder)
        misfit = first_misfit(saved.path, wanted) if saved is not None else None
        if misfit is not None:
            raise UserError(
                f"{folder} holds checkpoints of another model than {wanted.name} ({misfit}): "
                f"choose another folder with directory=PATH."
            )
        return
    saved = ModelConfig.read(description)
    for field in ModelConfig.model_fields:
        if field != "name" and getattr(saved, field) != getattr(wanted, field):
            raise UserError(
                f"{folder} holds checkpoints of another model ({field} is {getattr(saved, field)}, "
                f"the recipe says {getattr(wanted, field)}): choose another folder with "
                f"directory=PATH."
            )


def refuse_another_optimizer(recipe: Recipe) -> None:
    """Look whether upstream can divide the saved optimizer states as the recipe wants them.

    Raises:
        UserError: it cannot; the sentence says what to restore.
    """
    description = recipe.checkpoint_folder / "recipe.yaml"
    if not description.exists():
        return
    before = yaml_text.read_mapping(description).get("parallel", {}).get("zero1", False)
    if before != recipe.parallel.zero1:
        raise UserError(
            f"{recipe.checkpoint_folder} was written with parallel.zero1: {str(before).lower()}, "
            f"whose optimizer states do not go over: restore it, or choose another folder with "
            f"directory=PATH."
        )


def refuse_another_length(recipe: Recipe) -> None:
    """Look whether the run's sequences are as long as they were: tokens are counted by them.

    Raises:
        UserError: they are not; every curve would be read at another place.
    """
    description = recipe.checkpoint_folder / "recipe.yaml"
    if not description.exists():
        return
    before = yaml_text.read_mapping(description).get("data", {}).get("seq_length")
    if before not in (None, recipe.data.seq_length):
        raise UserError(
            f"{recipe.checkpoint_folder} was written with data.seq_length: {before}, by which the "
            f"curves count their tokens: restore it, or choose another folder with directory=PATH."
        )


def describe(recipe: Recipe, tokenizer: Path) -> None:
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
