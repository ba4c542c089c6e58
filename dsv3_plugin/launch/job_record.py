"""Which job of Slurm's runs a run: a small file in the run's folder. No torch here."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dsv3_plugin.files import json_text
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.run_folder import JOB_RECORD, RunFolder


@dataclass(frozen=True)
class JobRecord:
    """The job that a run was last submitted as.

    Attributes:
        job: Slurm's number of it; of an array's task, `12_0`.
        cluster: what it was planned for.
        output: the file of what its script prints.
        submitted: when, in seconds since 1970.
        command: what submits it once more; empty where that was not written down.
    """

    job: str
    cluster: str
    output: str
    submitted: float
    command: str = ""

    @property
    def output_file(self) -> Path:
        return Path(self.output)


def record_of(folder: RunFolder) -> JobRecord | None:
    """The job of a run; None where it was never submitted, or the file is not ours."""
    try:
        said = json_text.read_object(_place(folder))
        return JobRecord(
            str(said["job"]),
            str(said["cluster"]),
            str(said["output"]),
            float(said["submitted"]),
            str(said.get("command", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(folder: RunFolder, record: JobRecord) -> None:
    """Remember the job of a run."""
    folder.launch.mkdir(parents=True, exist_ok=True)
    replace_file(_place(folder), json.dumps(asdict(record)).encode())


def ask_to_stop(folder: RunFolder) -> None:
    """Let the job of a run not begin again once its ranks have saved."""
    replace_file(_stop(folder), b"")


def is_asked_to_stop(folder: RunFolder) -> bool:
    """Whether somebody wants the run saved and stopped."""
    return _stop(folder).exists()


def forget_stop(folder: RunFolder) -> None:
    """A run that is submitted anew is wanted."""
    _stop(folder).unlink(missing_ok=True)


def _place(folder: RunFolder) -> Path:
    return folder.launch / JOB_RECORD


def _stop(folder: RunFolder) -> Path:
    return folder.launch / "stop"
