"""Whether it is a job's turn in the folder of its run. No torch here.

A node that is lost to Slurm may be there still, with a rank that waits for the others and holds the
folder until it gives up. And two jobs may have been submitted for one run, where a file system
locks nothing: the one that the run's folder names is the one to run.
"""

import time
from collections.abc import Callable

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import InUse, RunFolder
from dsv3_plugin.launch.job_record import record_of
from dsv3_plugin.launch.job_values import FOR_LAST_WORDS_S
from dsv3_plugin.recipe.schema import Recipe

SEEN_S = 60.0
"""How long a node may see a folder as it was before: NFS's acregmax and acdirmax. A job can begin
before what wrote it down was seen."""
_LOOK_EVERY_S = 1.0


def refuse_another_job(run: RunFolder, job: str, within_s: float) -> None:
    """Look whether a job is the one that a run was launched as last.

    Raises:
        UserError: it is not, nor becomes so within that time.
    """
    late = time.monotonic() + within_s
    while (record := record_of(run)) is None or record.job != job:
        if time.monotonic() >= late:
            since = "nothing there names it" if record is None else f"that is job {record.job} now"
            raise UserError(
                f"job {job} leaves the run in {run.root} alone: {since}; dsv3 launch submits it "
                "anew."
            )
        time.sleep(_LOOK_EVERY_S)


def patience_s(recipe: Recipe) -> float:
    """By when a rank has given up that waits for others, and has said so."""
    before_training, in_training = 60 * recipe.parallel.timeout_minutes, recipe.pipeline.timeout
    return max(before_training, in_training or 0) + FOR_LAST_WORDS_S


def wait_for_folder(
    run: RunFolder, within_s: float, tell: Callable[[str], object], given_up: Callable[[], bool]
) -> InUse | None:
    """Wait until no process holds the folder of a run.

    Args:
        run: the run.
        within_s: how long.
        tell: told once who is waited for.
        given_up: whether nobody wants the run any more.

    Returns:
        Who holds it still; None: nobody, or it is not wanted any more.
    """
    late = time.monotonic() + within_s
    told = False
    while True:
        try:
            with run.held():
                return None
        except InUse as held:
            if given_up():
                return None
            if time.monotonic() >= late:
                return held
            if not told:
                tell(f"Waiting for {held.holder}, which holds {held.folder}, to end.")
            told = True
        time.sleep(_LOOK_EVERY_S)
