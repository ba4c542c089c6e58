"""Whether the folder of a run is that of a job which waits or runs. No torch here."""

import contextlib

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import queue
from dsv3_plugin.launch.job_record import record_of

_PATIENCE_S = 10.0
"""For Slurm, where what it would say is no more than a precaution."""


def refuse_job(run: RunFolder, patience_s: float | None = None) -> None:
    """Raise UserError for a run that has a job already, or of which Slurm does not say.

    Args:
        run: the run.
        patience_s: how long Slurm has to answer; None: as long as it takes.
    """
    record = record_of(run)
    job = None if record is None else queue.queued([record.job], patience_s).get(record.job)
    if job is not None:
        raise UserError(
            f"the run in {run.root} is job {job.job} already, {job}: dsv3 cancel {run.root} "
            "ends it; another run needs a folder of its own, directory=PATH."
        )


def refuse_seen_job(run: RunFolder) -> None:
    """Raise UserError for a run of which Slurm says that it has a job already."""
    with contextlib.suppress(queue.NoAnswer):
        refuse_job(run, _PATIENCE_S)
