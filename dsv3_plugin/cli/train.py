"""`dsv3 train` and `dsv3 args`: a recipe run, and the same recipe as upstream's command line."""

from typing import Annotated

import typer

from dsv3_plugin.cli.options import Overrides, Recipe
from dsv3_plugin.terminal.lines import note, say_all


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


def args(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print upstream Megatron-LM's command line, one flag a line; what has no flag, on stderr."""
    from dsv3_plugin.machine import Machine
    from dsv3_plugin.model import SPEC
    from dsv3_plugin.planner.resolve import load_resolved
    from dsv3_plugin.recipe.arguments import beyond_the_line, command_line

    machine = Machine.here()
    loaded = load_resolved(recipe, overrides or [], machine)
    say_all(command_line(loaded, machine, SPEC))
    for phrase in beyond_the_line(loaded):
        note(f"dsv3: upstream has no flag for this: {phrase}")
