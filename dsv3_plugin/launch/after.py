"""The job after which another begins (`dsv3 launch --after`)."""

import re

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import queue
from dsv3_plugin.launch.ending import is_done
from dsv3_plugin.launch.job_record import record_of
from dsv3_plugin.launch.status import LAUNCHED
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.places import run_at


def job_to_wait_for(named_so: str) -> str | None:
    """The job of a number, or the last of a run; None where that run has come to its end.

    Raises:
        UserError: there is neither, or the run has no job any more and was not at its end.
    """
    if re.fullmatch(r"\d+(_\d+)?", named_so, re.ASCII):
        # sbatch takes any number: of one that it does not know it says nothing.
        if not queue.is_known(named_so):
            raise UserError(
                f"--after {named_so}: Slurm knows no job of that number, or not any more: name the "
                "folder of its run, or leave --after out."
            )
        return named_so
    run = run_at(named_so) or RunFolder(named(named_so))
    record = record_of(run)
    if record is None:
        raise UserError(
            f"--after {named_so} is neither a number of a job nor the folder of a run that was "
            "launched: name one of those (dsv3 status lists the runs in runs/), or leave --after "
            "out."
        )
    queue.need_slurm("squeue")
    if queue.queued([record.job]):
        return record.job
    if not is_done(load_recipe(run.launch / LAUNCHED)):
        raise UserError(
            f"--after {named_so}: job {record.job} of that run has ended, and the run is not at "
            f"its end: launch it again (dsv3 status {named_so} says how it ended), or leave "
            "--after out."
        )
    return None
