"""What Slurm says of jobs, in its own words: squeue, sbatch, scancel. No torch here."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dsv3_plugin.errors import UserError

_FIELDS = ("JobArrayID", "State", "Reason", "RestartCnt", "TimeLeft", "NodeList")
_UNKNOWN = "Invalid job id"
"""What squeue says where the only job that it was asked for ended minutes ago."""
_NO_CONTROLLER = re.compile(
    r"resolve_ctls|fetch_config|configless|establish a configuration|contact slurm controller"
    r"|Connection (refused|timed out)|slurm\.conf",
    re.IGNORECASE,
)
"""What sbatch says where it has no configuration, or nobody answers."""
_OF_A_COMMAND = re.compile(r"^\w+: (error|fatal): ")
_ENDED = frozenset(
    {
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "PREEMPTED", "REVOKED", "TIMEOUT",
    }
)  # fmt: skip
"""States of a job that has come to its end. squeue leaves them out by default, and with them some
that a job passes through while Slurm puts it back into the queue: all have to be asked for."""


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits or runs.

    Attributes:
        job: its number; of an array's task, `12_0`.
        state, reason: Slurm's words (`PENDING`, `Resources`).
        restarts: how often Slurm put it back into the queue.
        time_left: until its time limit, as Slurm writes it.
        nodes: Slurm's list of them; empty while it waits.
    """

    job: str
    state: str
    reason: str
    restarts: int
    time_left: str
    nodes: str

    @property
    def waits(self) -> bool:
        return self.state == "PENDING"

    @property
    def is_ending(self) -> bool:
        """Whether Slurm ends what it runs, after which it may go back into the queue."""
        return self.state == "COMPLETING"

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason != "None" else self.state


class NoAnswer(UserError):
    """Slurm does not say how jobs stand."""


def queued(jobs: Iterable[str], patience_s: float | None = None) -> dict[str, QueuedJob]:
    """Those of some jobs that Slurm has still, by their numbers; none where there is no Slurm.

    Args:
        jobs: their numbers.
        patience_s: how long squeue has to answer; None: as long as it takes.

    Raises:
        NoAnswer: squeue fails, with its words.
    """
    wanted = sorted(set(jobs))
    if not wanted or shutil.which("squeue") is None:
        return {}
    return read_jobs(_listed(wanted, patience_s))


def is_known(job: str) -> bool:
    """Whether Slurm knows a job, which it does for some minutes after its end.

    Raises:
        UserError: there is no Slurm, or squeue fails, with its words.
    """
    need_slurm("squeue")
    return bool(_listed([job]).strip())


def _listed(jobs: Sequence[str], patience_s: float | None = None) -> str:
    """A line on each of some jobs that Slurm knows."""
    columns = ",".join(f"{field}:|" for field in _FIELDS)
    which = ("--array", "--states=all", f"--jobs={','.join(jobs)}")
    try:
        answer = _run(["squeue", "--noheader", *which, "-O", columns], patience_s)
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"squeue gives no answer in {patience_s:g} seconds.") from error
    if answer.returncode and _UNKNOWN not in answer.stderr:
        raise NoAnswer(f"squeue says: {_words(answer)}{_from_here(answer)}.")
    return answer.stdout


def read_jobs(listed: str) -> dict[str, QueuedJob]:
    """The jobs of squeue's answer that have not ended.

    Raises:
        NoAnswer: it is none.
    """
    found = {}
    for line in filter(str.strip, listed.splitlines()):
        words = [word.strip() for word in line.split("|")]
        if len(words) < len(_FIELDS):
            raise NoAnswer(f"squeue answers with '{line.strip()}', which is no line on a job.")
        job, state, reason, restarts, left, nodes, *_ = words
        times = int(restarts) if restarts.isdecimal() else 0  # N/A in some states
        if state in _ENDED:
            continue
        found[job] = QueuedJob(job, state, reason, times, left, nodes)
    return found


def submit(script: str, options: Sequence[str] = ()) -> str:
    """Have a batch script queued; the number of the job.

    Args:
        script: its path.
        options: of sbatch, beside those in the script.

    Raises:
        UserError: there is no Slurm, or it refuses; with its words.
    """
    need_slurm("sbatch")
    answer = _run(["sbatch", "--parsable", *options, script])
    if answer.returncode:
        words = _words(answer)
        raise UserError(f"Slurm does not take the job: {words}: {_way_out(words)}.")
    job = answer.stdout.strip().partition(";")[0]  # ID;CLUSTER where there are several
    if not job.isdecimal():
        raise UserError(
            f"sbatch does not say which job it has queued, but {_words(answer)}: squeue --me shows "
            f"whether it is there."
        )
    return job


def _way_out(words: str) -> str:
    """What helps where sbatch refuses."""
    if _NO_CONTROLLER.search(words):
        return (
            "Slurm's controller is not reached from here: call dsv3 launch on a login node of the "
            "cluster, or start the run without Slurm (--torchrun); --dry-run prints the script"
        )
    return "mend launch in the cluster's file; --dry-run prints the script that it makes"


def cancel(job: str, options: Sequence[str] = ()) -> None:
    """End a job, or with `--signal=NAME` send its ranks that.

    Raises:
        UserError: there is no Slurm, or it refuses; with its words.
    """
    need_slurm("scancel")
    answer = _run(["scancel", *options, job])
    if answer.returncode:
        raise UserError(f"Slurm does not cancel job {job}: {_words(answer)}{_from_here(answer)}.")


def need_slurm(command: str) -> None:
    """Raise UserError where Slurm's commands are not on the path."""
    if shutil.which(command) is None:
        raise UserError(
            f"there is no Slurm here ({command} is not on the PATH): start it on a login node of "
            "the cluster, or with torchrun (dsv3 launch --torchrun prints its lines)."
        )


def _run(command: list[str], patience_s: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience_s)


def _from_here(answer: subprocess.CompletedProcess[str]) -> str:
    """What helps where nobody answers."""
    reached = _NO_CONTROLLER.search(answer.stderr) is None
    return "" if reached else ": Slurm's controller is not reached from here: ask on a login node"


def _words(answer: subprocess.CompletedProcess[str]) -> str:
    """What one of Slurm's commands said, in one line; where nobody answers, what came of that."""
    said = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
    if said and _NO_CONTROLLER.search(said[0]):
        said = [_OF_A_COMMAND.sub("", said[-1])]
    return "; ".join(dict.fromkeys(line.strip().rstrip(".") for line in said)) or (
        f"nothing, with exit code {answer.returncode}"
    )
