"""Which iteration of a checkpoint folder is whole.

Upstream writes an iteration's tensors first, then `.metadata`, then `metadata.json`, then the
number into `latest_checkpointed_iteration.txt`; a kill in between leaves a folder or a tracker file
that cannot be trusted. `newest_complete` trusts the tracker if what it names is whole, and looks
for the newest whole iteration otherwise. Conversions mark their target with `INCOMPLETE` until
everything is in place.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.checkpoint import absent
from dsv3_plugin.checkpoint.formats.dist_metadata import METADATA, read_contents
from dsv3_plugin.checkpoint.formats.pickles import ForeignSymbolError
from dsv3_plugin.errors import UserError
from dsv3_plugin.files import json_text
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.run_folder import RELEASE, TRACKER
from dsv3_plugin.recipe.kept import run_in

INCOMPLETE = "INCOMPLETE"
"""Marks a conversion's target that is not finished; it is also the conversion's journal."""

_LONGEST = 1000
"""Bytes of a tracker file that can be meant."""


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint."""

    path: Path
    """The folder of the iteration (or `release`)."""
    iteration: int
    """0 for `release`: weights without a training state."""
    release: bool

    @property
    def tracked(self) -> str:
        """What the tracker file says for it."""
        return RELEASE if self.release else str(self.iteration)


def newest_complete(directory: str | Path) -> Saved | None:
    """The checkpoint to load from `directory`; None if there is no whole one.

    The tracker file decides if it names a whole iteration. Otherwise (empty, cut short, missing, or
    naming one that is damaged) it is the whole iteration of the highest number, or `release`.
    """
    directory = Path(directory)
    if (directory / INCOMPLETE).exists():
        return None
    tracked = _tracked(directory)
    if tracked is not None and is_complete(tracked.path):
        return tracked
    return next((saved for saved in _saved_in(directory) if is_complete(saved.path)), None)


def repair(directory: str | Path) -> Saved | None:
    """Makes the tracker file name what `newest_complete` finds, and returns that.

    Without any whole checkpoint a tracker file is removed, so that upstream starts anew instead of
    failing.
    """
    directory = Path(directory)
    saved = newest_complete(directory)
    path = directory / TRACKER
    if saved is None:
        if not (directory / INCOMPLETE).exists():
            path.unlink(missing_ok=True)
        return None
    # Upstream writes into the file that is there: through a link, into another one.
    if path.is_symlink() or _tracked(directory) != saved:
        write_tracker(directory, saved.tracked)
    return saved


def write_tracker(directory: Path, text: str) -> None:
    """Writes the tracker file so that a kill leaves the old one or the new one."""
    replace_file(directory / TRACKER, text.encode())


def is_complete(path: Path) -> bool:
    """Whether an iteration folder has its metadata and every byte that it refers to.

    Raises ForeignSymbolError if it names what could run code: that is no accident, so it is not
    passed over for an older one.
    """
    try:
        json_text.read(path / "metadata.json")
        read_contents(path)
    except ForeignSymbolError:
        raise
    except (OSError, ValueError, UserError):
        return False
    return True


def find(directory: str | Path) -> Path:
    """The iteration folder to read from `directory`, which may itself be one.

    What the tracker names is taken at its word: if it turns out damaged, the reader says so rather
    than silently reading an older iteration. Raises UserError if there is nothing to read or a
    conversion into it was not finished.
    """
    directory = Path(directory)
    refuse_unfinished(directory)
    if (directory / METADATA).exists():
        refuse_unfinished(directory.parent)
        return directory
    if tracked := _tracked(directory):
        if not tracked.path.is_dir():
            raise _named_in_vain(directory, tracked)
        return tracked.path
    if saved := newest_complete(directory):
        return saved.path
    if (directory / "config.json").exists():
        raise UserError(
            f"{directory} is a Hugging Face folder, not a checkpoint: dsv3 import "
            f"{shlex.quote(str(directory))} CHECKPOINT makes one of it."
        )
    refuse_run_folder(directory)
    absent.refuse_no_folder(directory, "a checkpoint")
    raise UserError(
        f"{directory} holds no complete checkpoint: name a run's checkpoints, such as "
        f"runs/NAME/checkpoints, or the folder that dsv3 import made."
    )


def step_to_name(iteration: Path) -> int | None:
    """The step that upstream has to be told (`--ckpt-step`) to load an iteration's folder.

    None: the tracker file beside it names it, which upstream loads by itself.

    Raises:
        UserError: upstream would load another, or none, whatever it is told.
    """
    directory = iteration.parent
    tracked = _tracked(directory)
    if tracked is not None and tracked.path.name == iteration.name:
        return None
    numbered = {saved.path.name: saved for saved in _iterations(directory)}
    saved = numbered.get(iteration.name)
    if saved is None or (tracked is not None and tracked.release):
        name = RELEASE if saved is None else str(saved.iteration)
        there = (directory / TRACKER).exists()
        nothing = "no checkpoint" if there else "nothing, since it is not there"
        raise UserError(
            f"{directory / TRACKER} names {nothing if tracked is None else tracked.tracked}, "
            f"and Megatron-LM loads what it names: write {name} into it for {iteration}."
        )
    return saved.iteration


def untracked(iteration: Path) -> str | None:
    """What plain Megatron-LM does not find by itself of an iteration's folder; None: nothing."""
    try:
        step = step_to_name(iteration)
    except UserError as error:
        return str(error)
    if step is None:
        return None
    return (
        f"{iteration.parent / TRACKER} does not name {iteration.name}: Megatron-LM loads it with "
        f"--ckpt-step {step}, as dsv3 args {shlex.quote(str(iteration))} says."
    )


def _named_in_vain(directory: Path, tracked: Saved) -> UserError:
    """What to say of a tracker file that names what is not there."""
    there = [saved for saved in _saved_in(directory) if saved.path.is_dir()]
    said = f"{directory / TRACKER} names {tracked.tracked}, and {tracked.path} is not there"
    if not there:
        return UserError(f"{said}, nor any other: copy it again, or take another checkpoint.")
    names = ", ".join(saved.path.name for saved in there)
    return UserError(
        f"{said}; there {'is' if len(there) == 1 else 'are'} {names}: write {there[0].tracked} "
        f"into the file, or name {there[0].path}."
    )


def iterations_in(directory: Path) -> str:
    """The folders of iterations in a folder of checkpoints, newest first, as a list to read."""
    return ", ".join(saved.path.name for saved in _saved_in(directory) if saved.path.is_dir())


def refuse_run_folder(directory: Path) -> None:
    """Raises UserError if `directory` is that of a run, with its checkpoints in another."""
    if (inside := newest_complete(run_in(directory).checkpoints)) is not None:
        raise UserError(
            f"{directory} holds no complete checkpoint, and {inside.path.parent} does: name that."
        )


def refuse_unfinished(directory: Path) -> None:
    """Raises UserError if a conversion into `directory` was not finished."""
    if (directory / INCOMPLETE).exists():
        raise UserError(
            f"{directory} is unfinished ({INCOMPLETE} is there): finish the conversion that "
            f"writes it with --resume (dsv3 inspect {shlex.quote(str(directory))} says the "
            "command), or remove it."
        )


def _tracked(directory: Path) -> Saved | None:
    try:
        text = json_text.read_plain(directory / TRACKER, _LONGEST).decode().strip()
    except (OSError, ValueError):
        return None
    if text == RELEASE:
        return Saved(directory / RELEASE, 0, True)
    if re.fullmatch(r"[0-9]{1,18}", text):
        return Saved(directory / f"iter_{int(text):07d}", int(text), False)
    return None


def _saved_in(directory: Path) -> list[Saved]:
    """All that may be whole: numbers from the highest down, and `release` last."""
    numbered = sorted(_iterations(directory), key=lambda saved: saved.iteration, reverse=True)
    return [*numbered, Saved(directory / RELEASE, 0, True)]


def _iterations(directory: Path) -> list[Saved]:
    found = []
    for path in directory.glob("iter_*"):
        if match := re.fullmatch(r"iter_(\d{7,})", path.name):
            found.append(Saved(path, int(match[1]), False))
    return found
