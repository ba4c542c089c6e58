"""`dsv3 status`, `dsv3 logs` and `dsv3 cancel`: runs that are there, and their jobs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv3_plugin.cli.options import Json
from dsv3_plugin.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from dsv3_plugin.launch.status import RunStatus

Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="The folder of a run (runs/tiny), or its job's number."),
]


_WIDEST = 500
"""Columns of the table of runs."""


def status(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN…", help="Folders of runs, or jobs' numbers; by default all in runs/."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Say how runs stand: step, loss, tokens/s, time left, restarts, the last checkpoint."""
    from dsv3_plugin.cli.notes import note
    from dsv3_plugin.launch.job_alone import goes_on_by
    from dsv3_plugin.launch.queue import queued
    from dsv3_plugin.launch.relaunched import relaunched
    from dsv3_plugin.launch.run_of_job import folder_meant
    from dsv3_plugin.launch.status import (
        find_runs,
        jobs_of,
        launched_in_vain,
        not_begun,
        runs_below,
        status_of,
    )
    from dsv3_plugin.terminal.lines import say_json

    below = Path("runs")
    asked = (
        [folder_meant(run) for run in runs or ()] or runs_below(below) or launched_in_vain(below)
    )
    if not asked:
        raise UserError(
            "there is no run in runs/: name the folder of one, or begin one (dsv3 train, dsv3 "
            "launch)."
        )
    found = list(dict.fromkeys(run for folder in asked for run in find_runs(folder)))
    try:
        jobs = queued(jobs_of(found))
    except UserError as error:  # the files say most of it
        note(str(error))
        jobs = None
    stand = [status_of(run, jobs) for run in found]
    if json:
        for run, one in zip(found, stand, strict=True):
            say_json({**vars(one), "folder": str(one.folder), "relaunched": relaunched(run)})
        return
    from dsv3_plugin.terminal.console import Console

    # As wide as it has to be: a terminal folds a line better than a table its columns.
    console = Console(width=_WIDEST)
    console.print(status_table(stand))
    for one in stand:
        if one.why and (runs or one.state in ("failed", "broke off")):
            console.line_of(f"{one.folder}: {one.why}")
    for run in found:
        if (again := relaunched(run)) is not None:
            console.line_of(f"{run.root}: {again}; what stands here is of the one before.")
    if runs and len(found) == 1:
        by = goes_on_by(found[0], stand[0].state, jobs)
        for sentence in filter(None, (not_begun(found[0], jobs), by)):
            console.line_of(sentence)


def status_table(stand: "list[RunStatus]") -> "Table":
    """A row for each run."""
    from rich.table import Table

    from dsv3_plugin.launch.status import since
    from dsv3_plugin.numbers import time_text

    table = Table(box=None, pad_edge=False)
    for heading in ("run", "job", "state"):
        table.add_column(heading)
    for heading in ("step", "loss", "tokens/s", "left", "restarts", "saved"):
        table.add_column(heading, justify="right")
    for one in stand:
        of = "" if one.steps is None else f"/{one.steps:,}"
        age = since(one.saved_at)
        table.add_row(
            str(one.folder),
            one.job or "",
            one.state,
            f"{one.step:,}{of}",
            "" if one.loss is None else f"{one.loss:.4f}",
            "" if one.tokens_per_second is None else f"{one.tokens_per_second:,.0f}",
            "" if one.seconds_left is None else time_text(one.seconds_left),
            str(one.restarts),
            "never" if age is None else f"{one.saved_step:,}, {time_text(age)} ago",
        )
    return table


def logs(
    run: Run,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show what is added, until the run ends.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(help="The log of this rank alone, since its last start.", min=0)
    ] = None,
) -> None:
    """Show what a run printed since its last start, the failing rank's lines first."""
    from dsv3_plugin.launch.run_logs import follow as follow_files
    from dsv3_plugin.launch.run_logs import log_ends
    from dsv3_plugin.launch.run_of_job import folder_meant
    from dsv3_plugin.launch.status import end_of_run, find_run, status_of
    from dsv3_plugin.terminal.lines import finish, note, say

    found = find_run(folder_meant(run))
    is_over = end_of_run(found)
    try:
        ends = log_ends(found, rank)
    except UserError:
        if not follow or is_over():
            raise
        ends = []  # what comes is waited for
    for end in ends:
        if rank is None:
            say(f"== {end.title}: {end.file}")
        for line in end.lines:
            say(line)
    if follow:

        def add(title: str, line: str) -> None:
            say(line if rank is not None else f"{title}: {line}")
            finish()

        follow_files(found, rank, ends, add, is_over)
        stands = status_of(found, {})
        note(f"The run in {found.root} has ended ({stands.state}): nothing more will be printed.")
        if stands.state in ("failed", "broke off") and stands.why:
            note(stands.why)


def cancel(
    run: Run,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait until it has saved: as scancel does.")
    ] = False,
) -> None:
    """Let the job of a run save and end, or those of a sweep, by its folder."""
    from dsv3_plugin.launch.cancelling import cancel_all
    from dsv3_plugin.launch.run_of_job import folder_meant
    from dsv3_plugin.terminal.lines import say

    for sentence in cancel_all(folder_meant(run), now=now):
        say(sentence)
