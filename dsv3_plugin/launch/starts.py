"""The starts of a job: what is remembered of each, and whether there may be another.

A job starts its run again after a failure, a lost node, a preemption or the end of its time, and
each start goes on from the newest whole checkpoint. Two things end that: more failures than the
cluster's file allows, and no progress, that is two restarts with the same newest checkpoint.
Functions that decide are pure; each start and each end is a line of `launch/starts.jsonl`.
No torch here.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from dsv3_plugin.files.atomic import append_to
from dsv3_plugin.files.run_folder import RunFolder

End = Literal["done", "time limit", "stopped", "failed", "refused"]
"""done: all tokens had. time limit: saved, since Slurm's time limit is near. stopped: saved, since
somebody or something else asked for it. failed: a rank broke. refused: a person has to mend
something first. None of these: Slurm ended it, with a lost node or a preemption, say."""

Action = Literal["done", "requeue", "again", "stop"]
"""What a job does next. done: it ends well. requeue: Slurm puts it back into the queue. again: the
run is started in the same allocation. stop: it ends, and whoever waits for it does not begin."""

TRY_AGAIN = 75
"""Exit code of a task of srun that ends with what may be over when the run is started again, as
sysexits.h has it (EX_TEMPFAIL). srun ends with the largest code of its tasks."""
NOT_STARTED = 76
"""srun's own where Slurm does not start what it is asked for; the script's where nodes do not come
together."""

_ENDS: tuple[End, ...] = get_args(End)
_WITHOUT_FAULT: tuple[End, ...] = ("done", "time limit", "stopped")


@dataclass(frozen=True)
class Start:
    """One start of a run by a job.

    Attributes:
        job: Slurm's number of it.
        began: when, in seconds since 1970.
        step: of the newest checkpoint then; 0 where there was none.
        ended: how, if the job could say so.
        why: a sentence on its end.
    """

    job: str
    began: float
    step: int
    ended: End | None = None
    why: str = ""


def refusal(before: Sequence[Start], step: int, restarts: int) -> str | None:
    """Why a job may not start its run once more; None where it may.

    Args:
        before: the starts that this job has had.
        step: of the newest checkpoint now.
        restarts: how many failures a job gets over.
    """
    failures = sum(start.ended not in _WITHOUT_FAULT for start in before)
    if failures > restarts:
        return (
            f"the run failed {failures} times in this job, and launch.restarts of the cluster's "
            f"file is {restarts}: find out why, and submit it again"
        )
    if len(before) > 1 and before[-1].step == step:
        newest = f"the newest checkpoint is still that of step {step:,}"
        return (
            f"no progress between two restarts: {newest if step else 'there is still none'}; find "
            "out why, or save more often (checkpoint.interval), and submit it again"
        )
    return None


def next_action(
    code: int, *, done: bool, wanted: bool, time_is_up: bool, by_slurm: bool, moved: bool
) -> tuple[End, Action]:
    """How a start ended, and what the job does next.

    Args:
        code: the exit code of the ranks; 2: something for a person to mend, which what may be over
            at the next start is not (75); `NOT_STARTED`: there were none.
        done: whether the run has had all its tokens.
        wanted: whether nobody asked for its end.
        time_is_up: whether Slurm announced the end of the job's time.
        by_slurm: whether Slurm ends the job itself, and decides what becomes of it.
        moved: whether this start took any step: what a person has to mend is found before.
    """
    if done:
        return "done", "done"
    if by_slurm:
        return ("stopped" if code == 0 else "failed"), "stop"
    if not wanted:
        return "stopped", "stop"
    if time_is_up and code == 0:
        return "time limit", "requeue"
    if code == 0:
        return "stopped", "requeue"
    if code == 2 and not moved:
        return "refused", "stop"
    # What Slurm does not start on these nodes, it may on others, or a while later.
    return "failed", ("requeue" if time_is_up or code == NOT_STARTED else "again")


def starts_of(folder: RunFolder, job: str | None = None) -> list[Start]:
    """The starts of a run, or those by one job."""
    found: list[Start] = []
    for event in _events(_place(folder)):
        match event:
            case {"job": str(by), "time": int() | float() as began, "step": int(step)}:
                found.append(Start(by, began, step))
            case {"job": str(by), "ended": str(ended), "why": str(why)} if ended in _ENDS:
                if found and found[-1].job == by:
                    found[-1] = replace(found[-1], ended=ended, why=why)
    return [start for start in found if job in (None, start.job)]


def remember_start(folder: RunFolder, job: str, step: int) -> None:
    """Add a start."""
    _append(folder, {"job": job, "step": step})


def remember_end(folder: RunFolder, job: str, ended: End, why: str) -> None:
    """Add how the newest start ended."""
    _append(folder, {"job": job, "ended": ended, "why": why})


def _append(folder: RunFolder, event: dict[str, Any]) -> None:
    folder.launch.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": time.time(), **event}).encode() + b"\n"
    before = _text(_place(folder))
    with append_to(_place(folder)) as file:
        file.write(b"\n" + line if before and before[-1] != "\n" else line)  # cut short by a kill


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; what a kill cut short, or a disk damaged, is passed over."""
    for line in _text(path).splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            yield event


def _text(path: Path) -> str:
    """What the file holds; nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _place(folder: RunFolder) -> Path:
    return folder.launch / "starts.jsonl"
