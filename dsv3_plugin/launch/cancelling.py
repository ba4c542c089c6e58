"""Ending the job of a run. No torch here."""

from collections.abc import Iterator, Sequence

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import queue
from dsv3_plugin.launch.job_record import ask_to_stop, forget_stop, is_asked_to_stop, record_of

SAVE = "--signal=TERM"
"""To the ranks of a job and not to its script, which sees them to their end."""


def cancel_all(runs: Sequence[RunFolder], *, now: bool) -> Iterator[str]:
    """Let the jobs of runs save and end, as far as they have one still: sentences.

    Raises:
        UserError: none of them has, or Slurm refuses.
    """
    if len(runs) > 1:
        jobs = queue.queued(record.job for run in runs if (record := record_of(run)) is not None)
        runs = [
            run for run in runs if (record := record_of(run)) is not None and record.job in jobs
        ] or runs
    for run in runs:
        yield cancel(run, now=now)


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
        here = " (Ctrl-C or SIGTERM to `dsv3 train` saves and stops it)" if run.is_held_here else ""
        raise UserError(f"the run in {run.root} was not launched as a job of Slurm{here}.")
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
