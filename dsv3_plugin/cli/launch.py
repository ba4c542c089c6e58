"""`dsv3 launch`: a recipe as a job of Slurm, or the lines that start it without."""

from typing import Annotated

import typer

from dsv3_plugin.cli.options import Cluster, Overrides, Recipe
from dsv3_plugin.errors import UserError


def launch(
    recipe: Recipe,
    overrides: Overrides = None,
    cluster: Cluster = None,
    nodes: Annotated[
        int | None, typer.Option(help="Nodes; by default as many as the ranks fill.", min=1)
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="JOB_OR_RUN",
            help="Begin when this job, or the job of this run, has ended well.",
        ),
    ] = None,
    array: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE,…",
            help="A run for each value (training.seed=1,2,3), each in a folder of its own.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the job's script; nothing is written.")
    ] = False,
    torchrun: Annotated[
        bool,
        typer.Option("--torchrun", help="Print torchrun's line for each node, in place of a job."),
    ] = False,
) -> None:
    """Submit a recipe to Slurm, once it is known to fit: rehearsed, planned, checked, restarted."""
    from dsv3_plugin.launch.submit import launch as submit
    from dsv3_plugin.launch.submit import prepare, torchrun_lines
    from dsv3_plugin.launch.wanted import Wanted
    from dsv3_plugin.terminal.lines import note, say, say_all

    if torchrun and (after or array or dry_run):
        raise UserError(
            "--torchrun starts one run by hand: leave out --after, --array and --dry-run"
        )
    wanted = Wanted(recipe, tuple(overrides or ()), cluster, nodes, after, array)
    prepared = prepare(wanted, note)
    if torchrun:
        say_all(torchrun_lines(prepared).splitlines())
    elif dry_run:
        say_all(prepared.script.splitlines())
    else:
        for job, one in zip(submit(prepared), prepared.recipes, strict=True):
            say(f"Job {job}: {one.name} in {one.folder}; dsv3 status {one.folder} shows it.")
