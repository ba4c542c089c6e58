"""Which run is meant, where people give the number of its job. No torch here."""

import re
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch.job_record import record_of
from dsv3_plugin.launch.status import runs_below

_RUNS = Path("runs")
_JOB = re.compile(r"[0-9]+(_[0-9]+)?")


def is_job(text: str) -> bool:
    """Whether it is written like a job's number, or that of a task of an array."""
    return _JOB.fullmatch(text) is not None


def folder_meant(run: Path) -> Path:
    """The folder of a run, as it was named, or that of the run in runs/ whose job has this number.

    That of an array is its sweep's.

    Raises:
        UserError: it is a number, and no folder, and no run there has that job.
    """
    folder, job = named(run), str(run)
    if not is_job(job) or folder.exists():
        return folder
    for one in runs_below(_RUNS):
        record = record_of(RunFolder(one))
        if record is not None and record.job == job:
            return one
        if record is not None and record.job.startswith(f"{job}_"):
            return one.parent
    raise UserError(
        f"{job} is no folder of a run, and no run in {_RUNS}/ was launched as job {job}: name the "
        "folder of the run; dsv3 status lists those in runs/."
    )
