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
    kubernetes: Annotated[
        bool,
        typer.Option("--kubernetes", help="Print a PyTorchJob of Kubernetes, in place of a job."),
    ] = False,
    skypilot: Annotated[
        bool, typer.Option("--skypilot", help="Print a task of SkyPilot, in place of a job.")
    ] = False,
) -> None:
    """Submit a recipe to Slurm, once it is known to fit: rehearsed, planned, checked, restarted."""
    from dsv3_plugin.launch import submit
    from dsv3_plugin.launch.wanted import Wanted
    from dsv3_plugin.terminal.lines import note, say, say_all

    without_slurm = {
        "--torchrun": (torchrun, submit.torchrun_lines),
        "--kubernetes": (kubernetes, submit.kubernetes_manifest),
        "--skypilot": (skypilot, submit.skypilot_task),
    }
    others = {name: text for name, (is_wanted, text) in without_slurm.items() if is_wanted}
    if len(others) > 1:
        raise UserError(f"{' and '.join(others)} are different ways to start a run: name one")
    of_jobs = {"--after": after, "--array": array, "--dry-run": dry_run}
    if others and (stray := [option for option, given in of_jobs.items() if given]):
        raise UserError(
            f"{next(iter(others))} prints how one run is started by hand: leave out "
            f"{' and '.join(stray)}"
        )
    wanted = Wanted(
        recipe, tuple(overrides or ()), cluster, nodes, after, array, next(iter(others), None)
    )
    prepared = submit.prepare(
        wanted,
        note,
        is_submitted=not others and not dry_run,
        is_handed_over=kubernetes,
        made_of_it=next(iter(others.values()), None),
    )
    if prepared is None:
        return
    for text in others.values():
        say_all(text(prepared).splitlines())
        return
    if dry_run:
        say_all(prepared.script.splitlines())
        return
    for job, one in zip(submit.launch(prepared), prepared.recipes, strict=True):
        say(f"Job {job}: {one.name} in {one.folder}; dsv3 status {one.folder} shows it.")
