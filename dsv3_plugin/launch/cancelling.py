"""Ending the job of a run. No torch here."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import queue
from dsv3_plugin.launch.job_record import ask_to_stop, forget_stop, is_asked_to_stop, record_of
from dsv3_plugin.launch.status import find_runs, jobs_of, runs_side_by_side

SAVE = "--signal=TERM"
"""To the ranks of a job and not to its script, which sees them to their end."""
_NAMED = 8


def cancel_all(folder: Path, *, now: bool) -> Iterator[str]:
    """Let the job of a run save and end, or those that a sweep has still: sentences.

    Args:
        folder: the run's, or that of the sweep.
        now: as `cancel` has it.

    Raises:
        UserError: there is none, the folder holds runs that are no sweep, or Slurm refuses.
    """
    runs = find_runs(folder)
    several = runs_side_by_side(folder)
    with_jobs = _with_jobs(several)
    if several and not RunFolder(folder).sweep_script.is_file():
        raise UserError(_no_sweep(folder, with_jobs))
    for run in with_jobs or runs:
        yield cancel(run, now=now)


def _with_jobs(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Those whose job waits or runs."""
    jobs = queue.queued(jobs_of(runs))
    return [run for run in runs if (record := record_of(run)) is not None and record.job in jobs]


def _no_sweep(folder: Path, with_jobs: Sequence[RunFolder]) -> str:
    """That a folder holds runs which nobody launched together."""
    names = [str(run.root) for run in with_jobs]
    if not names:
        return f"{folder} is no run and no sweep, and no run in it has a job that waits or runs."
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return (
        f"{folder} is no run and no sweep: name the run whose job is to end, one of those in it "
        f"that have jobs ({', '.join(names[:_NAMED])}{more})."
    )


def cancel(run: RunFolder, *, now: bool) -> str:
    """Let the job of a run save and end; one that still waits in the queue ends there.

    Args:
        run: the run.
        now: end it as scancel does: asked by SIGTERM, and killed after Slurm's KillWait.

    Returns:
        A sentence on what was done.

    Raises:
        UserError: no job of it waits or runs.
    """
    record = record_of(run)
    if record is None:
        way_out = ": there is nothing to cancel"
        if run.is_held_here:
            holder = re.match(r"process \d+", run.holder)
            process = "PROCESS" if holder is None else holder[0].removeprefix("process ")
            way_out = (
                f": Ctrl-C where dsv3 train runs, or kill -TERM {process}, lets it save and stop"
            )
        raise UserError(f"the run in {run.root} was not launched as a job of Slurm{way_out}.")
    for command in ("scancel", "squeue"):
        queue.need_slurm(command)
    job = queue.queued([record.job]).get(record.job)
    if job is None:
        raise UserError(f"job {record.job} of the run in {run.root} has ended already.")
    # Before its ranks hear of it: the script looks for that word when they have ended.
    asked_before = is_asked_to_stop(run)
    ask_to_stop(run)
    # Of one that is ending Slurm has told the ranks, and lets none be told more; cancelled, it does
    # not go back into the queue, and they save nevertheless.
    at_once = job.waits or job.is_ending or now
    try:
        queue.cancel(record.job, [] if at_once else [SAVE])
    except UserError:
        if not asked_before:
            forget_stop(run)
        raise
    if at_once:
        how = "its ranks have Slurm's KillWait to save in"
        if job.waits:
            how = "it was still waiting"
        elif job.is_ending:
            how = "it was ending, and does not go back into the queue"
        return f"Job {record.job} is cancelled: {how}."
    return (
        f"Job {record.job} finishes its step, saves and ends; dsv3 cancel --now does not wait for "
        "that."
    )
