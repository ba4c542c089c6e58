"""A run whose job is over: why it never began, and how it goes on. No torch here."""

import shutil
from collections.abc import Mapping, Sequence

from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch.job_record import JobRecord, is_asked_to_stop, record_of
from dsv3_plugin.launch.local_end import state_here
from dsv3_plugin.launch.queue import QueuedJob
from dsv3_plugin.launch.starts import Start, starts_of

_OURS = "dsv3: "
"""How a sentence begins in what a job prints."""
_READ_BYTES = 2**16
_GOES_ON = ("stopped", "failed", "broke off")


def ended_before(run: RunFolder, record: JobRecord, starts: Sequence[Start]) -> tuple[str, str]:
    """The state of a run that has not begun and whose job Slurm has no more, and why.

    Args:
        run: the run.
        record: its job.
        starts: of that job.
    """
    if shutil.which("squeue") is None:  # from a laptop its job is not seen
        return "unknown", ""
    if starts and starts[-1].ended is not None:
        return ("stopped" if starts[-1].ended == "stopped" else "failed"), starts[-1].why
    if is_asked_to_stop(run):
        return "stopped", f"job {record.job} was cancelled before the run began"
    said = _last_sentence(record)
    if said is None:
        how = ", and has printed nothing, as where it is cancelled while it waits"
    else:
        how = f"{f': {said}' if said else ''}; what it printed is in {record.output}"
    return "failed", f"job {record.job} ended before the run began{how}"


def goes_on_by(run: RunFolder, state: str, jobs: Mapping[str, QueuedJob] | None) -> str | None:
    """A sentence on how a run goes on whose job is over.

    Args:
        run: the run.
        state: how it stands.
        jobs: those that Slurm has still; None: it does not answer.

    Returns:
        None: it does not, or not by a job.
    """
    record = record_of(run)
    is_over = jobs is not None and record is not None and record.job not in jobs
    if not is_over or state not in _GOES_ON or shutil.which("squeue") is None:
        return None
    starts = starts_of(run, record.job)
    if state_here(run, starts[-1].began if starts else 0.0) is not None:
        return None  # it was gone on with by dsv3 train, which says how
    command = record.command or f"dsv3 launch {run.launched_with}"
    return f"{run.root} {run.goes_on} by: {command}"


def _last_sentence(record: JobRecord) -> str | None:
    """What the script of a job said last, empty if nothing; None: it has no output."""
    try:
        with record.output_file.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _READ_BYTES))
            printed = file.read().decode(errors="replace")
    except OSError:
        return None
    ours = [line for line in printed.splitlines() if line.startswith(_OURS)]
    return ours[-1].removeprefix(_OURS).rstrip(".") if ours else ""
