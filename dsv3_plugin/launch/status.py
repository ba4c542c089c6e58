"""How runs stand: by the files of their folders, and by what Slurm says of their jobs. No torch."""

import contextlib
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.metrics_file import number_in
from dsv3_plugin.files.run_folder import JOB_SCRIPT, TRACKER, RunFolder
from dsv3_plugin.launch import job_alone
from dsv3_plugin.launch.ending import is_done
from dsv3_plugin.launch.job_record import JobRecord, record_of
from dsv3_plugin.launch.local_end import state_here
from dsv3_plugin.launch.progress import Pace
from dsv3_plugin.launch.queue import QueuedJob, queued
from dsv3_plugin.launch.starts import Start, starts_of
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.places import the_run_at
from dsv3_plugin.recipe.schema import Recipe

LAUNCHED = "recipe.yaml"
"""In a run's `launch` folder: the recipe that its job starts."""

_PACED_BY = 50
"""Records by which the time left is reckoned."""
_ASK_EVERY_S = 5.0
"""Slurm's controller, which answers everybody."""


@dataclass(frozen=True)
class RunStatus:
    """How a run stands. What is not known is None.

    Attributes:
        folder: its folder.
        state: the job's, in Slurm's words, while Slurm has it, and behind RUNNING whether it is
            preparing (its data); else preparing, training, done, stopped, failed or broke off
            (without a word), and unknown where it has a job and Slurm does not answer.
        job: Slurm's number of the job that it was last submitted as.
        step, tokens, loss, tokens_per_second: of the last step.
        steps: of the whole run.
        seconds_left: until it has had all tokens, at its pace; of a run that is under way.
        restarts: of that job.
        saved_step: of the newest checkpoint; 0 if there is none.
        saved_at: when that was finished, in seconds since 1970.
        why: a sentence on the end of its last start.
    """

    folder: Path
    state: str
    job: str | None
    step: int
    steps: int | None
    tokens: int
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    restarts: int
    saved_step: int
    saved_at: float | None
    why: str


def runs_below(folder: Path) -> list[Path]:
    """The folders of runs in a folder, and those of sweeps there.

    In a folder that is a run's itself, what was launched is a run: its checkpoints are none.
    """
    found = []
    for child in _folders(folder):
        alone = is_run(child)
        counts = _was_launched if alone else is_run
        found += [*([child] if alone else []), *filter(counts, _folders(child))]
    return found


def launched_in_vain(folder: Path) -> list[Path]:
    """The folders in a folder whose runs Slurm did not take, and that have not begun."""
    return [
        child
        for child in _folders(folder)
        if RunFolder(child).launched_with.is_file() and not is_run(child)
    ]


def _was_launched(folder: Path) -> bool:
    return record_of(RunFolder(folder)) is not None


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run: begun, waiting for its job or preparing its data.

    Where its checkpoints lie, and what it was launched with, is a recipe too, and no run.
    """
    others = any((folder / name).exists() for name in (TRACKER, JOB_SCRIPT))
    begun = RunFolder(folder).recipe.is_file() and not others
    return begun or _was_launched(folder) or RunFolder(folder).has_only_prepared


def find_run(folder: Path) -> RunFolder:
    """The run of a folder, or of the checkpoints in it.

    Raises:
        UserError: there is none.
    """
    if _was_launched(folder) and not RunFolder(folder).recipe.is_file():
        return RunFolder(folder)
    try:
        return the_run_at(folder)
    except UserError:
        if is_run(folder):  # its recipe is damaged, which says nothing against the rest
            return RunFolder(folder)
        raise


def find_runs(folder: Path) -> list[RunFolder]:
    """The run of a folder, or those of the sweep that it holds.

    Raises:
        UserError: there is none.
    """
    return runs_side_by_side(folder) or [find_run(folder)]


def runs_side_by_side(folder: Path) -> list[RunFolder]:
    """The runs that a folder holds; none where it is that of a run."""
    return [] if is_run(folder) else [find_run(one) for one in _folders(folder) if is_run(one)]


def all_runs(folder: Path) -> list[RunFolder]:
    """The runs in a folder, that of the folder itself included.

    Raises:
        UserError: there is none.
    """
    below = runs_below(folder)
    if not below or is_run(folder):
        below = [find_run(folder).root, *below]
    return [find_run(one) for one in below]


def end_of_run(run: RunFolder) -> Callable[[], bool]:
    """A function that says, when it is asked, whether a run that is watched has come to its end.

    Where it was launched, that is the end of its job, which may wait or be put back into the queue
    meanwhile; otherwise that of the process that trains it here, or that it is done. Of a process
    on another machine nothing is known.
    """
    was_held, asked_at, is_gone = False, -math.inf, False

    def is_over() -> bool:
        nonlocal was_held, asked_at, is_gone
        if run.is_held_here:
            was_held = True
            return False
        if was_held and not _has_job(run):
            return True
        if time.monotonic() - asked_at >= _ASK_EVERY_S:
            asked_at = time.monotonic()
            with contextlib.suppress(UserError):  # Slurm does not answer now
                is_gone = _is_gone(run)
        return is_gone

    return is_over


def _has_job(run: RunFolder) -> bool:
    """Whether Slurm can be asked for the job of a run."""
    return record_of(run) is not None and shutil.which("squeue") is not None


def _is_gone(run: RunFolder) -> bool:
    """Whether nothing goes on with a run that no process here holds.

    Raises:
        UserError: Slurm does not answer.
    """
    if _has_job(run):
        job = record_of(run).job
        return job not in queued([job])
    if run.holder_is_gone:
        return True
    recipe = _recipe(run)
    if recipe is None or _of(recipe, "total_steps") is None:
        return False
    return is_done(recipe.model_copy(update={"directory": str(run.root)}))  # it may have moved


def jobs_of(runs: Sequence[RunFolder]) -> Iterator[str]:
    """The numbers of the jobs that runs were submitted as."""
    for run in runs:
        if (record := record_of(run)) is not None:
            yield record.job


def status_of(run: RunFolder, jobs: Mapping[str, QueuedJob] | None) -> RunStatus:
    """How a run stands.

    Args:
        run: its folder.
        jobs: those that Slurm has still, by number; None: it does not answer.
    """
    record, recipe = record_of(run), _recipe(run)
    starts = [] if record is None else starts_of(run, record.job)
    last: dict[str, Any] = {}
    records: deque[dict[str, Any]] = deque(maxlen=_PACED_BY)
    for line in run.metrics.stream():
        if number_in(line, "loss") is not None:
            last = line
            records.append(line)
    steps, tokens = _of(recipe, "total_steps"), number_in(last, "tokens") or 0
    state, under_way = _state(run, record, jobs, steps)
    why = starts[-1].why if starts else ""
    ended = state == "stopped" or (state == "not begun" and run.has_not_trained)
    if ended and (broken := _broken(run, starts)) is not None:
        state, why = broken
    elif state == "not begun" and record is not None:
        state, why = job_alone.ended_before(run, record, starts)
    since = starts[-1].began if starts else 0.0
    return RunStatus(
        folder=run.root,
        state=state,
        job=None if record is None else record.job,
        step=last.get("iteration", 0),
        steps=steps,
        tokens=round(tokens) if math.isfinite(tokens) else 0,
        loss=number_in(last, "loss"),
        tokens_per_second=number_in(last, "tokens_per_second") if under_way else None,
        seconds_left=_left(recipe, records, since) if under_way else None,
        restarts=_restarts(record, starts, jobs or {}),
        saved_step=run.steps_saved(),
        saved_at=run.saved_at(),
        why=why,
    )


def _state(
    run: RunFolder,
    record: JobRecord | None,
    jobs: Mapping[str, QueuedJob] | None,
    steps: int | None,
) -> tuple[str, bool]:
    """The state in words, and whether the run is under way."""
    if record is not None and (job := (jobs or {}).get(record.job)) is not None:
        prepares = job.state == "RUNNING" and run.has_not_trained
        return f"{job}{', preparing' if prepares else ''}", not job.waits
    if run.is_held_here:
        return ("preparing" if run.prepares else "training"), True
    if steps is not None and run.steps_saved() >= steps:
        return "done", False
    if record is not None and jobs is None:  # its job may be running
        return "unknown", False
    if not run.recipe.is_file():
        return ("not begun" if run.waits_to_begin else "stopped"), False
    return "stopped", False


def _broken(run: RunFolder, starts: Sequence[Start]) -> tuple[str, str] | None:
    """`failed`, `broke off`, `stopped` or `unknown`, and why; None: nobody said anything."""
    if (here := state_here(run, starts[-1].began if starts else 0.0)) is not None:
        return here
    if not starts or starts[-1].ended in ("done", "time limit", "stopped"):
        return None
    ended, why = starts[-1].ended, starts[-1].why
    if ended is None and shutil.which("squeue") is None:  # from a laptop its job is not seen
        return "unknown", ""
    return ("broke off" if ended is None else "failed"), why


def not_begun(run: RunFolder, jobs: Mapping[str, QueuedJob] | None) -> str | None:
    """A sentence on a run of which there is nothing yet but its job; None: there is more."""
    record = record_of(run)
    if record is None or not run.waits_to_begin:
        return None
    if jobs is not None and shutil.which("squeue") is not None:
        if record.job not in jobs:
            return None  # why it never began is said of its state
        stands = "not begun"
    else:
        stands = "nothing more is known of it"
    return (
        f"{run.root}: launched as job {record.job}, and {stands}; what that prints is in "
        f"{record.output}."
    )


def _restarts(
    record: JobRecord | None, starts: Sequence[Start], jobs: Mapping[str, QueuedJob]
) -> int:
    """By its own account, or Slurm's where the job was put back before it could begin."""
    job = None if record is None else jobs.get(record.job)
    return max(len(starts) - 1, 0 if job is None else job.restarts)


def _left(recipe: Recipe | None, records: Sequence[dict[str, Any]], since: float) -> float | None:
    """Seconds, by the steps since the run was started last."""
    if (tokens := _of(recipe, "total_tokens")) is None:
        return None
    pace = Pace(tokens, _PACED_BY)
    for record in dropwhile(lambda record: (number_in(record, "time") or 0) < since, records):
        pace.note(record)
    return pace.seconds_left


def _recipe(run: RunFolder) -> Recipe | None:
    """What the run is of; None where it is of another version of dsv3, and cannot be read."""
    for kept in (run.recipe, run.launched_with):
        if kept.is_file():
            try:
                return load_recipe(kept)
            except UserError:
                return None
    return None


def _of(recipe: Recipe | None, what: str) -> int | None:
    """A number of a recipe; None where conversations have to be counted first."""
    try:
        return None if recipe is None else getattr(recipe, what)
    except ValueError:
        return None


def since(then: float | None) -> float | None:
    """Seconds from a moment until now."""
    return None if then is None else max(0.0, time.time() - then)
