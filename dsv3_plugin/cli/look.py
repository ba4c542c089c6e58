"""`dsv3 runs`, `dsv3 diff` and `dsv3 plot`: runs side by side."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv3_plugin.cli import completion
from dsv3_plugin.cli.options import Json, refuse_other_ending
from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import number_of
from dsv3_plugin.terminal.lines import note, say, say_all, say_json

if TYPE_CHECKING:
    from dsv3_plugin.report.losses import RunLosses

_WIDEST = 500
"""Columns of the table of runs."""
RECIPE_OR_RUN = "RECIPE_OR_RUN"


def runs(
    directory: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="A folder of runs, or of one.")
    ] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List runs, those that go on and those that ended: steps, losses, speed, state."""
    from dsv3_plugin.files.named import named
    from dsv3_plugin.launch.queue import queued
    from dsv3_plugin.launch.status import (
        all_runs,
        is_run,
        jobs_of,
        launched_in_vain,
        runs_below,
        status_of,
    )
    from dsv3_plugin.recipe.places import run_at, what_is_in_place
    from dsv3_plugin.report.run_table import line_of, mapping, table

    there = named(directory)
    if not (is_run(there) or runs_below(there) or launched_in_vain(there) or run_at(there)):
        if directory == Path("runs"):
            raise UserError(
                "there are no runs yet, which lie in runs/: dsv3 train pretrain/tiny makes one."
            )
        raise UserError(
            f"{directory} {what_is_in_place(there)}: name a folder of runs, or of one; dsv3 runs, "
            "alone, lists those in runs/."
        )
    found = all_runs(there)
    try:
        jobs = queued(jobs_of(found))
    except UserError as error:  # the files say most of it
        note(f"Note: {error}")
        jobs = None
    lines = [line_of(run, status_of(run, jobs)) for run in found]
    if as_json:
        for line in lines:
            say_json(mapping(line))
        return
    from dsv3_plugin.terminal.console import Console

    # As wide as it has to be: a terminal folds a line better than a table its columns.
    Console(width=_WIDEST).print(table(lines))


def diff(
    a: Annotated[
        str,
        typer.Argument(
            metavar=RECIPE_OR_RUN,
            help="A recipe (name or path), or the folder of a run, or its job's number.",
            autocompletion=completion.recipes,
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(
            metavar=RECIPE_OR_RUN, help="The other one.", autocompletion=completion.recipes
        ),
    ],
    as_json: Json = False,
) -> None:
    """Say in which keys two recipes or runs differ, and what the last losses of runs are."""
    from dsv3_plugin.report.difference import compared, lines, mapping

    found = compared(a, b)
    if as_json:
        say_json(mapping(found))
    else:
        say_all(lines(found))


def plot(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN…", help="Folders of runs, or jobs' numbers.")
    ],
    png: Annotated[
        Path | None,
        typer.Option(help="Draw losses, and what changed during training, into this file."),
    ] = None,
) -> None:
    """Draw the losses of runs over each other: in the terminal, or as a picture."""
    if png is not None:
        refuse_other_ending("--png", png, ".png")
    from dsv3_plugin.launch.run_of_job import folder_meant, is_job
    from dsv3_plugin.recipe.places import the_run_at
    from dsv3_plugin.report.losses import losses_of, names_apart

    runs = [str(folder_meant(Path(run))) if is_job(run) else run for run in runs]
    names = names_apart(runs)
    found = [losses_of(the_run_at(run), name) for run, name in zip(runs, names, strict=True)]
    if png is not None:
        from dsv3_plugin.report.loss_picture import draw_losses

        draw_losses(found, png)
        say(f"wrote the losses of {number_of(len(found), 'run')} into {png}.")
        return
    _draw_here(found)


def _draw_here(runs: "list[RunLosses]") -> None:
    """Draw into the terminal, whose encoding may have no dots; and a line for each run."""
    from rich.text import Text

    from dsv3_plugin.report.loss_characters import drawn, key_line
    from dsv3_plugin.terminal.console import Console

    console = Console()
    colours = console.is_terminal and not console.no_color
    try:
        "⡷".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        note("Note: this terminal cannot show dots; --png FILE draws a picture.")
    else:
        for line in drawn(runs, console.width, colours=colours):
            console.print(Text.from_ansi(line), soft_wrap=True)
    for number, run in enumerate(runs):
        console.line_of(key_line(run, number, several=len(runs) > 1, colours=colours))
