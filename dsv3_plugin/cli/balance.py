"""`dsv3 balance`: how evenly the experts, ranks and nodes of a run are used."""

from pathlib import Path
from typing import Annotated

import typer

from dsv3_plugin.cli.options import Json, refuse_other_ending
from dsv3_plugin.terminal.lines import say_all, say_json


def balance(
    run: Annotated[
        Path,
        typer.Argument(help="Folder of a run, or of its checkpoints, or its job's number."),
    ],
    png: Annotated[
        Path | None, typer.Option(help="Draw heat maps over layers, steps and experts here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how evenly the experts, ranks and nodes of a run are loaded."""
    if png is not None:
        refuse_other_ending("--png", png, ".png")
    from dsv3_plugin.files.run_folder import RunFolder
    from dsv3_plugin.launch.run_of_job import folder_meant
    from dsv3_plugin.recipe.places import refuse_not_begun, run_at, the_run_at
    from dsv3_plugin.report.balance import (
        LoadHistory,
        draw_load,
        load_mapping,
        load_table,
        main_layers,
    )

    run = folder_meant(run)
    folder = run_at(run) or (RunFolder(run) if run.is_dir() else the_run_at(run))
    refuse_not_begun(folder)
    history = LoadHistory(folder.metrics.stream(), run, main_layers(folder))
    if as_json:
        say_json(load_mapping(history))
    else:
        say_all(load_table(history))
    if png is not None:
        draw_load(history, png, title=run.resolve().name)
