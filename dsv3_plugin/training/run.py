"""One run: its recipe, its folders, and the locks that keep a second run out of them."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv3_plugin.checkpoint.tracker import replace_file
from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.training.hooks import Hook, Step


@dataclass(frozen=True)
class RunDirectory:
    """Where everything of a run lies."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The recipe, resolved: all that is needed to run it again."""
        return self.root / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def write_recipe(self, recipe: Recipe) -> None:
        """Keep the resolved recipe in the folder."""
        replace_file(self.recipe, recipe.to_yaml().encode())

    @contextlib.contextmanager
    def held(self, recipe: Recipe) -> Iterator[None]:
        """Hold the folder and that of the checkpoints for as long as the block lasts.

        The checkpoints' own too: two runs that share it would retire each other's. A run that is
        refused before it has begun leaves nothing behind where there was nothing.

        Raises:
            UserError: another run holds a folder, or one cannot be written.
        """
        checkpoints = recipe.checkpoint_folder
        key = "directory" if recipe.checkpoint.directory is None else "checkpoint.directory"
        with contextlib.ExitStack() as stack:
            stack.enter_context(_locked(self.root, "run", "directory"))
            if checkpoints.resolve() != self.root.resolve():
                stack.enter_context(_locked(checkpoints, "checkpoint", key))
            had_logs = self.logs.exists()
            try:
                yield
            except UserError:
                if not had_logs and not self.recipe.exists():  # the last thing before training
                    shutil.rmtree(self.logs, ignore_errors=True)
                raise


@contextlib.contextmanager
def _locked(folder: Path, what: str, key: str) -> Iterator[None]:
    """Hold one folder. It is made if need be; where nothing came into it, it goes again."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"the {what} folder {folder} cannot be written ({error.strerror}): choose another "
            f"with {key}=PATH."
        ) from error
    try:
        if not _is_ours(handle, lock):
            raise UserError(
                f"another run is using {folder}: wait for it, or choose another folder with "
                f"{key}=PATH."
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if [*folder.iterdir()] == [lock]:
                    lock.unlink()
                    for path in made:
                        path.rmdir()
    finally:
        os.close(handle)


def _is_ours(handle: int, lock: Path) -> bool:
    """Whether an open file is locked now, until it is closed, and still there under its name."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise  # what is left are file systems without locks
    # The run before may have removed it after we had opened it.
    return lock.exists() and os.path.samestat(os.fstat(handle), lock.stat())


@dataclass
class Run:
    """What this process is training, and all that is known of it meanwhile.

    Attributes:
        recipe: the whole truth of it.
        directory: where it leaves what it leaves.
        hooks: what runs beside each step, in this order.
        step: the one that is under way, or was last.
        evaluated: after how many steps the weights were evaluated last.
        loaded: what hooks kept in the checkpoint that the run goes on from, by their names.
    """

    recipe: Recipe
    directory: RunDirectory
    hooks: Sequence[Hook] = ()
    step: Step | None = None
    evaluated: int | None = None
    loaded: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def in_charge(self) -> Iterator[None]:
        """Make this the run that upstream's wrapped functions serve, while the block lasts."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


_current: ContextVar[Run | None] = ContextVar("run", default=None)


def current_run() -> Run | None:
    """The run in charge; None in a Megatron program that only uses the plugin's parts."""
    return _current.get()
