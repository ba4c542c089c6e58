"""What a run leaves behind, and where: read and written here alone."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.errors import Passing, UserError
from dsv3_plugin.files import locks
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.full_disk import reason
from dsv3_plugin.files.json_text import read_plain
from dsv3_plugin.files.metrics_file import MetricsFile

TRACKER = "latest_checkpointed_iteration.txt"
"""Upstream's file in a checkpoint folder: the number of the newest iteration, or `release`."""

RELEASE = "release"
"""In its place of an iteration: weights without a training state."""
METADATA = ".metadata"
"""Upstream's file in the folder of an iteration."""

RECIPE = "recipe.yaml"
"""The recipe of a run, in its folder."""

JOB_SCRIPT = "job.sbatch"
"""What its job runs, in the folder `launch`, where that has a recipe too."""

SWEEP_SCRIPT = "sweep.sbatch"
"""What the job of a sweep runs, in the folder `launch` of the folder that holds its runs."""

JOB_RECORD = "job.json"
"""In the folder `launch`: which job the run was last submitted as."""

_LOCK = ".lock"

_SIGNATURE = re.compile(r"process (?P<process>\d+) on (?P<node>[^\s,]+)(?:, of job |$)")
"""Who holds the folder of a run, as its lock's file says it."""

_LONGEST_RECIPE = 2**24
"""Bytes; what a run keeps is complete, and a batch schedule may have thousands of pieces."""

_NO_FOLDER = {
    FileExistsError: "there is a file of that name",
    FileNotFoundError: "nothing can be made there",  # by the kernel alone, as in /proc
}
"""Why a folder cannot be made, where the system's words are of another question."""


class InUse(Passing):
    """Another process holds a folder of a run.

    Attributes:
        folder: which.
        holder: who, in words.
    """

    def __init__(self, folder: Path, key: str, holder: str) -> None:
        super().__init__(
            f"another run is using {folder}: wait for it, or choose another folder with {key}=PATH."
        )
        self.folder = folder
        self.holder = holder


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run.

    Attributes:
        root: the folder.
        elsewhere: the folder of its checkpoints, where that is not in `root`.
    """

    root: Path
    elsewhere: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.elsewhere or self.root / "checkpoints"

    @property
    def recipe(self) -> Path:
        """The recipe, resolved: all that is needed to run it again."""
        return self.root / RECIPE

    @property
    def parent(self) -> Path:
        """The weights that it began with, where they are another run's."""
        return self.root / "parent"

    @property
    def metrics(self) -> MetricsFile:
        """The numbers of every step and evaluation."""
        return MetricsFile(self.root / "metrics.jsonl")

    @property
    def tensorboard(self) -> Path:
        """What upstream writes for TensorBoard."""
        return self.root / "tensorboard"

    @property
    def schedules(self) -> Path:
        """Pipeline schedules that were searched for."""
        return self.root / "schedules"

    @property
    def logs(self) -> Path:
        """What each rank printed."""
        return self.root / "logs"

    @property
    def arguments(self) -> Path:
        """All of upstream's arguments, as it prints them, of the last start."""
        return self.logs / "arguments.txt"

    @property
    def samples(self) -> Path:
        """Answers of every step of reinforcement learning, with what they were worth."""
        return self.root / "samples"

    @property
    def rollouts(self) -> Path:
        """Answers of the steps since the newest checkpoint, for a run that goes on from it."""
        return self.root / "rollouts"

    @property
    def reference(self) -> Path:
        """Weights that reinforcement learning takes a divergence to."""
        return self.root / "reference"

    @property
    def served(self) -> Path:
        """Weights that a server of rollouts was given last."""
        return self.root / "served"

    @property
    def flight_recorder(self) -> Path:
        """What NCCL did last on each rank, when one of them waited too long."""
        return self.root / "flight_recorder"

    @property
    def launch(self) -> Path:
        """Of the job that runs it on a cluster: its script, what that printed, its starts."""
        return self.root / "launch"

    @property
    def sweep_script(self) -> Path:
        """In a folder that holds the runs of a sweep: what its job runs."""
        return self.launch / SWEEP_SCRIPT

    @property
    def launched_with(self) -> Path:
        """The recipe that its job begins it with."""
        return self.launch / RECIPE

    @property
    def waits_to_begin(self) -> bool:
        """Whether it was launched and has not begun: all that there is of it is in `launch`."""
        return (self.launch / JOB_RECORD).is_file() and not self.recipe.is_file()

    @property
    def is_held_here(self) -> bool:
        """Whether a process of this machine holds the folder: a run is under way."""
        return locks.is_held(self.root / _LOCK)

    @property
    def prepares(self) -> bool:
        """Whether its ranks are here and its recipe is not yet: its data are being built."""
        return self.has_not_trained and self.is_held_here

    @property
    def has_not_trained(self) -> bool:
        """Whether its ranks, wherever they are or were, had its data to build first, and its
        recipe is not there yet."""
        return not self.recipe.is_file() and self.logs.is_dir()

    @property
    def has_only_prepared(self) -> bool:
        """Whether a run was here that prepared its data, or does so still, and got no further.

        One that was refused takes its logs along.
        """
        return self.has_not_trained and (self.root / _LOCK).is_file()

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """Be seen to prepare data while the block lasts, before there are ranks."""
        had_logs = self.logs.is_dir()
        self.logs.mkdir(parents=True, exist_ok=True)
        try:
            yield
        finally:
            if not had_logs:
                with contextlib.suppress(OSError):  # somebody has put something there
                    self.logs.rmdir()

    @property
    def holder(self) -> str:
        """Who holds the folder, or held it last, in words; empty where nobody said so."""
        return locks.signature(self.root / _LOCK)

    @property
    def holder_is_gone(self) -> bool:
        """Whether the process that held the folder last was of this machine, and has ended."""
        signed = _SIGNATURE.match(self.holder)
        if signed is None or signed["node"] != os.uname().nodename or self.is_held_here:
            return False
        return not Path("/proc", signed["process"]).exists()

    @property
    def recipes(self) -> Path:
        """All recipes that it was begun and continued with, in their order."""
        return self.root / "recipes"

    def write_recipe(self, yaml: str, step: int = 0) -> None:
        """Keep the resolved recipe, and all those before it.

        Args:
            yaml: its text.
            step: after which the run goes on with it.
        """
        kept = [*self._kept_recipes()]
        before = read_plain(self.recipe, _LONGEST_RECIPE) if self.recipe.is_file() else None
        if before is not None and not kept:  # a run of 0.1
            kept.append(self._keep_recipe(f"1_before_step_{step}.yaml", before))
        last = read_plain(kept[-1], _LONGEST_RECIPE) if kept else None
        if last != yaml.encode():
            self._keep_recipe(f"{len(kept) + 1}_from_step_{step}.yaml", yaml.encode())
        replace_file(self.recipe, yaml.encode())

    def _keep_recipe(self, name: str, yaml: bytes) -> Path:
        self.recipes.mkdir(exist_ok=True)
        replace_file(self.recipes / name, yaml)
        return self.recipes / name

    def _kept_recipes(self) -> list[Path]:
        numbers = {path: path.name.partition("_")[0] for path in self.recipes.glob("*_step_*.yaml")}
        return sorted(
            (path for path, number in numbers.items() if number.isdecimal()),
            key=lambda path: int(numbers[path]),
        )

    def steps_saved(self) -> int:
        """The step of the newest checkpoint, as the tracker file has it; 0 if there is none."""
        try:
            return int(read_plain(self.checkpoints / TRACKER, 1000))
        except (OSError, ValueError):
            return 0

    @property
    def goes_on(self) -> str:
        """What the same command does with it, as the rest of a sentence."""
        saved = self.steps_saved()
        return f"goes on from step {saved:,}" if saved else "begins anew"

    def saved_at(self) -> float | None:
        """When the newest checkpoint was finished; None if there is none."""
        try:
            return (self.checkpoints / TRACKER).stat().st_mtime
        except OSError:
            return None

    def refuse_unwritable(self) -> None:
        """Raise UserError where a run could not write, and leave everything as it is.

        A folder that is not there is made, and goes again.
        """
        folders = [(self.root, "run", "directory")]
        if self.elsewhere is not None:
            folders.append((self.elsewhere, "checkpoint", "checkpoint.directory"))
        for folder, what, key in folders:
            if not folder.exists():
                with _locked(folder, what, key):
                    pass
            elif not folder.is_dir():
                raise _unwritable(folder, what, key, _NO_FOLDER[FileExistsError])
            elif not os.access(folder, os.W_OK | os.X_OK):
                raise _unwritable(folder, what, key, os.strerror(errno.EACCES))

    def refuse_held(self) -> None:
        """Raise InUse where a process of this machine holds a folder, and take none."""
        key = "directory" if self.elsewhere is None else "checkpoint.directory"
        for folder, of in ((self.root, "directory"), (self.checkpoints, key)):
            if locks.is_held(folder / _LOCK):
                raise InUse(folder, of, locks.signature(folder / _LOCK))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder and that of the checkpoints for as long as the block lasts.

        The checkpoints' own too: two runs that share it would retire each other's. A run that is
        refused before it has begun leaves nothing behind where there was nothing.

        Raises:
            InUse: another run holds a folder.
            UserError: one cannot be written.
        """
        key = "directory" if self.elsewhere is None else "checkpoint.directory"
        with contextlib.ExitStack() as stack:
            stack.enter_context(_locked(self.root, "run", "directory"))
            if self.checkpoints.resolve() != self.root.resolve():
                stack.enter_context(_locked(self.checkpoints, "checkpoint", key))
            had_logs = self.logs.exists()
            try:
                yield
            except UserError:
                if not had_logs and not self.recipe.exists():  # the last thing before training
                    shutil.rmtree(self.logs, ignore_errors=True)
                raise


def is_checkpoint(directory: Path) -> bool:
    """Whether a folder looks like one of Megatron's checkpoints, or of an iteration of them.

    Whole or not.
    """
    if any((directory / name).exists() for name in (TRACKER, METADATA, RELEASE)):
        return True
    return any(re.fullmatch(r"iter_\d{7,}", path.name) for path in directory.glob("iter_*"))


def _unwritable(folder: Path, what: str, key: str, why: str) -> UserError:
    return UserError(
        f"the {what} folder {folder} cannot be written ({why}): choose another with {key}=PATH."
    )


def _locked(folder: Path, what: str, key: str) -> locks.FolderLock:
    try:
        lock = locks.take(folder, _LOCK)
    except OSError as error:
        why = _NO_FOLDER.get(type(error)) or reason(error)
        raise _unwritable(folder, what, key, why) from error
    if lock is None:
        raise InUse(folder, key, locks.signature(folder / _LOCK) or "another process")
    job = os.environ.get("SLURM_JOB_ID")
    where = f"process {os.getpid()} on {os.uname().nodename}"
    lock.sign(where if job is None else f"{where}, of job {job}")
    return lock
