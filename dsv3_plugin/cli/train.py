"""`dsv3 train` and `dsv3 args`: a recipe run, and the same recipe as upstream's command line."""

from pathlib import Path
from typing import Annotated

import typer

from dsv3_plugin.cli import completion
from dsv3_plugin.cli.options import Overrides, Recipe
from dsv3_plugin.errors import UserError
from dsv3_plugin.terminal.lines import note, say_all

RecipeOrCheckpoint = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE_OR_CHECKPOINT",
        help="Shipped name (pretrain/tiny) or path of a recipe, or the folder of a checkpoint.",
        autocompletion=completion.recipes,
    ),
]


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
) -> None:
    """Train a recipe: start its processes, or be one of them under torchrun or srun."""
    from dsv3_plugin.launch.supervise import dry_run as say_only
    from dsv3_plugin.launch.supervise import train as run

    if dry_run:
        say_only(recipe, overrides or [])
        return
    raise typer.Exit(run(recipe, overrides or []))


def args(recipe: RecipeOrCheckpoint, overrides: Overrides = None) -> None:
    """Print upstream Megatron-LM's command line, one flag a line; what has no flag, on stderr.

    Of a checkpoint it is the whole command by which Megatron-LM's pretrain_gpt.py loads it.
    """
    if Path(recipe).is_dir():
        args_of_checkpoint(Path(recipe), overrides or [])
        return
    refuse_file_of_checkpoint(Path(recipe))
    from dsv3_plugin.machine import Machine
    from dsv3_plugin.model import SPEC
    from dsv3_plugin.planner.resolve import load_resolved
    from dsv3_plugin.recipe.arguments import beyond_the_line, command_line

    machine = Machine.here()
    try:
        loaded = load_resolved(recipe, overrides or [], machine)
    except UserError as error:
        if Path(recipe).exists() or "is neither a file nor" not in str(error):
            raise
        _refuse_other_places(Path(recipe))
        also = "a checkpoint's folder would do as well, and there is none of this name"
        raise UserError(f"{str(error).rstrip('.')}; {also}.") from error
    say_all(command_line(loaded, machine, SPEC))
    for phrase in beyond_the_line(loaded):
        note(f"dsv3: upstream has no flag for this: {phrase}")


def _refuse_other_places(place: Path) -> None:
    """Raise UserError for a model of the hub, or an iteration that is not among those there are."""
    from dsv3_plugin.checkpoint import absent
    from dsv3_plugin.checkpoint.tracker import iterations_in
    from dsv3_plugin.recipe.shipped import what_ships
    from dsv3_plugin.recipe.validation import nearest

    if place.parent.is_dir() and (there := iterations_in(place.parent)):
        raise UserError(f"{place} does not exist: in {place.parent} there are {there}.")
    kinds = {name.partition("/")[0] for name in what_ships()["recipes"]}
    if place.parts and not nearest(place.parts[0], sorted(kinds)):
        absent.refuse_elsewhere(place, "a checkpoint")


def refuse_file_of_checkpoint(file: Path) -> None:
    """Raise UserError for a file that lies in a checkpoint and can be no recipe."""
    from dsv3_plugin.checkpoint import absent
    from dsv3_plugin.checkpoint.formats.model_file import MODEL_FILE

    if not file.is_file() or (file.suffix in (".yaml", ".yml") and file.name != MODEL_FILE):
        return
    if (folder := absent.weights_around(file)) is not None:
        raise UserError(
            f"{file} is a file of a checkpoint, and no recipe: name the folder {folder}."
        )


def args_of_checkpoint(folder: Path, overrides: list[str]) -> None:
    """Print the command by which Megatron-LM loads a checkpoint."""
    from dsv3_plugin.checkpoint.loadable import loadable
    from dsv3_plugin.checkpoint.tracker import step_to_name
    from dsv3_plugin.machine import Machine
    from dsv3_plugin.model import SPEC
    from dsv3_plugin.recipe.loading import loading_arguments, loading_command

    if overrides:
        raise UserError(
            f"{overrides[0]} lays something over a recipe, and {folder} is a checkpoint: change "
            "the line that is printed"
        )
    machine, found = Machine.here(), loadable(folder)
    flags = loading_arguments(
        found.model,
        found.folder,
        step=step_to_name(found.iteration),
        seq_length=found.seq_length,
        dtype=found.dtype,
        tokenizer=found.tokenizer,
        backend="transformer_engine" if machine.gpus and machine.transformer_engine else "local",
        on_gpu=bool(machine.gpus),
        spec=SPEC,
    )
    say_all(loading_command(flags))
    if found.tokenizer is None:
        note(
            f"dsv3: {found.folder} has no tokenizer, so the command counts ids alone: in place of "
            "--tokenizer-type NullTokenizer and --vocab-size name the model's own, with "
            "--tokenizer-type HuggingFaceTokenizer --tokenizer-model FOLDER."
        )
    note(
        "dsv3: tensor, pipeline and expert parallelism are free: the checkpoint loads under any, "
        "tensor parallelism with --sequence-parallel and CUDA_DEVICE_MAX_CONNECTIONS=1. In place "
        "of --mock-data, name your own --data-path."
    )
