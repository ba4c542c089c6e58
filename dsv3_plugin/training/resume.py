"""What a run can go on from: a whole checkpoint, of the same model and counted alike. No torch."""

import shutil
from collections.abc import Callable
from pathlib import Path

from dsv3_plugin.checkpoint import tracker, trained_on
from dsv3_plugin.checkpoint.formats.dist_metadata import read_contents
from dsv3_plugin.checkpoint.formats.model_file import trained_as_another
from dsv3_plugin.checkpoint.inspect import first_misfit
from dsv3_plugin.checkpoint.tracker import Saved
from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.continued import Continued
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.training import parent
from dsv3_plugin.training.changed_settings import refuse_other_settings


def whole_checkpoint(folder: Path, tell: Callable[[str], None]) -> Saved | None:
    """The checkpoint to go on from; the tracker file names it afterwards. None: from the beginning.

    What a killed save left behind is removed. A checkpoint that was finished and is damaged now is
    passed over, and the person is told.

    Raises:
        UserError: there are checkpoints, and every one of them is damaged.
    """
    if not folder.is_dir():
        return None
    for iteration in folder.glob("iter_*"):
        if not (iteration / "metadata.json").exists():  # the last file of a save
            shutil.rmtree(iteration)
    saved = tracker.repair(folder)
    newest = max((path.name for path in folder.glob("iter_*")), default=None)
    if saved is None and newest is not None:
        raise UserError(
            f"no checkpoint in {folder} is whole: files of {newest} are missing or cut short. "
            f"Restore them, or move the folder away to begin anew."
        )
    if saved is not None and newest is not None and newest > saved.path.name:
        _explain_older(folder / newest, saved, tell)
    return saved


def _explain_older(newer: Path, saved: Saved, tell: Callable[[str], None]) -> None:
    if not tracker.is_complete(newer):
        tell(
            f"The checkpoint {newer} is damaged (files are missing or cut short); going on from "
            f"the newest whole one, step {saved.iteration}."
        )


def refuse_another_model(recipe: Recipe) -> None:
    """Look whether the checkpoints in a recipe's folder are of its model; names may differ.

    Upstream's own checkpoints bring no description: of those, the tensors are compared. Of all, the
    arguments that upstream keeps in them are.

    Raises:
        UserError: they are not; it names the first field, or tensor, in which the models differ.
    """
    folder, wanted = recipe.checkpoint_folder, recipe.model
    description = folder / "model.yaml"
    if not any([*folder.glob("iter_*"), *folder.glob("release")]):
        return
    if description.exists():
        described = ModelConfig.read(description)
        for field in ModelConfig.model_fields:
            if field != "name" and getattr(described, field) != getattr(wanted, field):
                raise UserError(
                    f"{folder} holds checkpoints of another model ({field} is "
                    f"{getattr(described, field)}, the recipe says {getattr(wanted, field)}): "
                    f"choose another folder with directory=PATH."
                )
    saved = tracker.newest_complete(folder)
    if saved is None:
        return
    misfit = None if description.exists() else first_misfit(saved.path, wanted)
    misfit = misfit or trained_as_another(wanted, saved.path, read_contents(saved.path))
    if misfit is not None:
        raise UserError(
            f"{folder} holds checkpoints of another model than {wanted.name} ({misfit}): "
            f"choose another folder with directory=PATH."
        )


def refuse_another_parent(recipe: Recipe) -> None:
    """Look whether a run that has no checkpoint yet can begin with its parent's weights.

    Raises:
        UserError: they are of another model, or there are none.
    """
    if isinstance(recipe, Continued) and tracker.newest_complete(recipe.checkpoint_folder) is None:
        parent.refuse_another(parent.find(recipe.from_), recipe.model)


def refuse_what_does_not_go_on(recipe: Recipe, *, data: bool = True) -> None:
    """Look whether the checkpoints in a recipe's folder are of its run, and its data, where
    they are read.

    Raises:
        UserError: they are not; it names what is another.
    """
    refuse_another_model(recipe)
    saved = tracker.newest_complete(recipe.checkpoint_folder)
    if saved is not None and not saved.release:
        refuse_other_settings(recipe, data=data)
        trained_on.refuse_replaced_tokenizer(recipe.checkpoint_folder)
