"""One run: its recipe, its folder, and the lock that keeps a second run out of it."""

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.checkpoint.tracker import replace_file
from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.schema import Recipe


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

    def lock(self) -> int:
        """Hold the folder until this process ends, however it ends.

        Returns:
            The open file descriptor; the lock lives as long as it does.

        Raises:
            UserError: another run holds the folder, or it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"the run folder {self.root} cannot be written ({error.strerror}): choose another "
                f"with directory=PATH."
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UserError(
                f"another run is using {self.root}: wait for it, or choose another folder with "
                f"directory=PATH."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise  # what is left are file systems without locks
        return handle


@dataclass(frozen=True)
class Run:
    """What this process is training."""

    recipe: Recipe
    directory: RunDirectory


_active: Run | None = None


def activate(run: Run | None) -> None:
    """Make `run` what the patches of the trainer look at in this process."""
    global _active
    _active = run


def active() -> Run | None:
    """The run of this process; None in a Megatron program that only uses the plugin's parts."""
    return _active
