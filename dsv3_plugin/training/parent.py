"""What a stage begins with: another run's newest whole checkpoint, or a Hugging Face folder.

`find` looks at what a recipe's `from:` names, `refuse_another` holds it against the recipe's model,
and `lay` puts its weights where upstream takes them from (`--pretrained-checkpoint`): in `parent/`
of the run's folder, a link to that one iteration, or what was imported. Nothing is written into the
parent's folder.
"""

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.checkpoint import absent, tracker
from dsv3_plugin.checkpoint.conversion import trained_length
from dsv3_plugin.checkpoint.conversion.journal import OtherTargetError
from dsv3_plugin.checkpoint.formats.dist_metadata import METADATA, read_contents
from dsv3_plugin.checkpoint.formats.hf_headers import CONFIG
from dsv3_plugin.checkpoint.formats.model_file import MODEL_FILE, model_of_checkpoint
from dsv3_plugin.checkpoint.tracker import Saved
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.folders import whole_folder
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.files.named import named
from dsv3_plugin.files.run_folder import RECIPE, is_checkpoint
from dsv3_plugin.recipe import shipped
from dsv3_plugin.recipe.continued import Continued
from dsv3_plugin.recipe.hf_config import read_hf_model
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.places import run_at, weights_at

_OF_TRAINING = {
    "name",
    "init_method_std",
    "moe_aux_loss_coeff",
    "moe_router_load_balancing_type",
    "max_position_embeddings",
}
"""Fields that change nothing of what given weights compute."""

_YARN = (
    "original_max_position_embeddings", "rotary_scaling_factor", "beta_fast", "beta_slow",
    "mscale", "mscale_all_dim",
)  # fmt: skip


@dataclass(frozen=True)
class Parent:
    """Whole weights that a stage may begin with.

    Attributes:
        folder: of its checkpoints, with their description and tokenizer; the Hugging Face folder.
        saved: the iteration; None: a Hugging Face folder.
        model: what the weights are of.
        trained_length: tokens of the sequences that it was trained on; None: nothing says.
    """

    folder: Path
    saved: Saved | None
    model: ModelConfig
    trained_length: int | None

    def __str__(self) -> str:
        if self.saved is None:
            return f"the Hugging Face folder {self.folder}"
        if self.saved.release:
            return f"the weights in {self.folder}"
        return f"step {self.saved.iteration:,} of {self.folder}"

    @property
    def described_in(self) -> Path:
        """The file that says what a folder of weights without a training state is of."""
        return self.folder / (CONFIG if self.saved is None else MODEL_FILE)


def find(place: str) -> Parent:
    """The parent that a recipe's `from:` names.

    Raises:
        UserError: nothing whole is there.
    """
    path = named(place)
    if (path / "config.json").is_file() and not is_checkpoint(path):
        model, _ = read_hf_model(path)
        return Parent(path, None, model, trained_length.of_conversion(path))
    saved = _saved(path)
    if saved is None:
        raise UserError(_nothing_in(path))
    folder, contents = saved.path.parent, read_contents(saved.path)
    model = model_of_checkpoint(folder, saved.path, contents)
    return Parent(folder, saved, model, trained_length.of_checkpoint(saved.path, contents))


def _saved(path: Path) -> Saved | None:
    """The checkpoint that a path stands for: one iteration's folder, or the newest whole one."""
    if (path / METADATA).is_file():
        if not tracker.is_complete(path):
            raise UserError(
                f"from: the checkpoint {path} is damaged (files are missing or cut short): name "
                f"another, or the folder above it for its newest whole one."
            )
        number = path.name.removeprefix("iter_")
        return Saved(path, int(number), False) if number.isdecimal() else Saved(path, 0, True)
    folder = weights_at(path)
    if not folder.is_dir():
        return None
    tracker.refuse_unfinished(folder)
    return tracker.newest_complete(folder)


def _nothing_in(path: Path) -> str:
    way_out = "name a run's folder, a checkpoint's, or a Hugging Face folder (with its config.json)"
    if not path.exists():
        if makers := shipped.recipes_to(path):
            lines = ", then ".join(f"dsv3 train {maker}" for maker in makers)
            way_out = f"{lines} {'makes' if len(makers) == 1 else 'make'} it; or {way_out}"
        return f"from: {path} does not exist: {way_out}."
    if not path.is_dir():
        folder = absent.weights_around(path)
        return f"from: {path} is not a folder: {way_out if folder is None else f'name {folder}'}."
    if (path / RECIPE).is_file():
        return (
            f"from: the run {path} has no whole checkpoint yet: wait for its first, or {way_out}."
        )
    return f"from: {path} holds no whole checkpoint: {way_out}."


def refuse_unfinished(recipe: Continued) -> None:
    """Raise UserError for a parent that was stopped on its way into the folder of its recipe: who
    begins with it says so. Where processes start themselves it is trained to its end first."""
    if recipe.parent_recipe is None or (run := run_at(recipe.from_)) is None:
        return
    saved = run.steps_saved()
    try:
        made_in = load_recipe(recipe.parent_recipe).run_folder.root
        kept = load_recipe(run.recipe, [f"directory={run.root}"])
    except UserError:  # none there, or of another version of dsv3
        return
    if os.path.realpath(made_in) != os.path.realpath(run.root):  # somebody has named another
        return
    if kept.training.epochs is not None and kept.epochs_counted is None:
        return
    if 0 < saved < kept.total_steps:
        own = shlex.quote(str(run.recipe))
        raise UserError(
            f"from: {recipe.from_} is at step {saved:,} of {kept.total_steps:,}: finish it first "
            f"(dsv3 train {own}, or launch), or begin with it as it is by parent_recipe=null."
        )


def refuse_another(parent: Parent, wanted: ModelConfig) -> None:
    """Hold a parent against the model that is to begin with its weights.

    Weights mean the same under the same fields. Positions may be stretched once, by YaRN over the
    length that the parent was trained on (arXiv 2309.00071); a parent that has been stretched
    already goes on with its own YaRN.

    Raises:
        UserError: they do not go together; it names the first field in which they differ.
    """
    before = parent.model
    for field in ModelConfig.model_fields:
        if field in _OF_TRAINING or field in _YARN or field == "rope_type":
            continue
        if (theirs := getattr(before, field)) != (ours := getattr(wanted, field)):
            raise UserError(
                f"{parent} is of another model: {field} is {theirs} there, and the recipe says "
                f"{ours}; name another parent with from=PATH, or mend the recipe's model."
            )
    if wanted.rope_type == "rope":
        if before.rope_type == "yarn":
            raise UserError(
                f"{parent} has positions stretched by YaRN (rotary_scaling_factor "
                f"{before.rotary_scaling_factor:g}), and the recipe's model has none: say "
                f"model.rope_type: yarn and its keys there."
            )
        return
    if before.rope_type == "rope":
        _refuse_another_length(parent, wanted.original_max_position_embeddings)
        return
    for field in _YARN:
        if (theirs := getattr(before, field)) != (ours := getattr(wanted, field)):
            raise UserError(
                f"{parent} has positions stretched by YaRN already, with {field} {theirs:.12g}, "
                f"and the recipe says {ours:.12g}: keep its own, model.{field}={theirs:.12g}."
            )


def _refuse_another_length(parent: Parent, original: int) -> None:
    """Look whether YaRN begins with the length that a parent with plain positions knows."""
    length = parent.trained_length
    if length is not None and length != original:
        raise UserError(
            f"{parent} was trained on sequences of {length:,} tokens, and the recipe stretches "
            f"positions from {original:,}: set model.original_max_position_embeddings={length}."
        )
    positions = parent.model.max_position_embeddings
    if length is None and positions != original:
        raise UserError(
            f"{parent} has positions for sequences of {positions:,} tokens and does not say on how "
            f"long ones it was trained, and the recipe stretches positions from {original:,}: set "
            f"model.original_max_position_embeddings={positions} if it was trained on as many, or "
            f"max_position_embeddings in {parent.described_in} to {original} if on these."
        )


def lay(parent: Parent, place: Path, tell: Callable[[str], None]) -> Path:
    """Put a parent's weights where the run begins with them.

    Args:
        parent: whose.
        place: a folder of the run's own; what it began with before, if it was another, goes.
        tell: takes a sentence for the person.

    Returns:
        The folder that describes them, with their tokenizer.

    Raises:
        UserError: they cannot be read, or the folder cannot be written.
    """
    if parent.saved is None:
        return _imported(parent.folder, place, tell)
    with (
        write_errors_as(lambda why: f"the folder {place} cannot be written ({why}): make room."),
        whole_folder(place) as new,
    ):
        (new / parent.saved.path.name).symlink_to(parent.saved.path.resolve())
        tracker.write_tracker(new, parent.saved.tracked)
    return parent.folder


def _imported(source: Path, place: Path, tell: Callable[[str], None]) -> Path:
    from dsv3_plugin.checkpoint import import_hf  # brings torch

    if tracker.newest_complete(place) is None:
        tell(f"Importing {source} into {place} (once).")
    try:
        report = import_hf(source, place, resume=True)
    except OtherTargetError:  # of another parent, or damaged
        with whole_folder(place):
            pass  # emptied at once; what a link leads to stays
        tell(f"Importing {source} into {place}, which held something else.")
        report = import_hf(source, place)
    for sentence in report.notes:
        tell(sentence)
    return place
