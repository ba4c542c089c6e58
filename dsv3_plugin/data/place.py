"""Where a dataset is built: one builder at a time, and nothing that is not ours gives way."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from dsv3_plugin.data.dataset_folder import MANIFEST, OWN_NAMES, Dataset, Settings
from dsv3_plugin.errors import UserError
from dsv3_plugin.files import locks
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.recipe.common import HELD_OUT_SETS


def sole_builder(out_dir: Path, tell: Callable[[str], None]) -> locks.FolderLock:
    """Wait until no other process builds beside `out_dir`, and keep others waiting meanwhile.

    Raises:
        UserError: the place cannot be written.
    """
    with write_errors(out_dir):
        return locks.wait_for(
            out_dir.parent,
            lambda: tell(f"Waiting for another build of a dataset in {out_dir.parent}."),
        )


def write_errors(out_dir: Path) -> contextlib.AbstractContextManager[None]:
    return write_errors_as(
        lambda reason: (
            f"cannot write {out_dir}: {reason}; make room, or choose another place. Nothing was "
            "changed."
        )
    )


def check_place(folder: Path, present: Dataset | None, settings: Settings, replace: bool) -> None:
    """Refuse to replace what is not a dataset, and a dataset that must stay."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another folder for the dataset.")
    beside = _beside(folder)
    foreign = sorted(
        path.name for path in folder.iterdir() if path.name not in OWN_NAMES and path not in beside
    )
    if foreign:
        raise UserError(
            f"{folder} holds other things than a dataset ({', '.join(foreign[:3])}): choose "
            "another folder."
        )
    if not replace and any(path.name.startswith(_MEMBER) for path in beside):
        raise UserError(
            f"{folder} holds the datasets of a mixture, and it must not change: choose another "
            "folder, or have them replaced (dsv3 data build --replace)."
        )
    if present and not replace:
        raise UserError(
            f"{folder} was built {_difference(present.manifest.settings, settings)}, and it must "
            "not change: restore that, start anew in another folder, or have it replaced (dsv3 "
            "data build --replace)."
        )


def gives_way(
    folder: Path, present: Dataset | None, settings: Settings, names: Sequence[str]
) -> str | None:
    """The sentence on what lies where a dataset is to be built, and gives way; None: nothing.

    Args:
        folder: where.
        present: the dataset that is there.
        settings, names: of the one to come, and of its corpus.
    """
    if present is None:
        if not any(path.name.startswith(_MEMBER) for path in _beside(folder)):
            return None
        was, why = "the datasets of a mixture", ""
    else:
        manifest = present.manifest
        before, now = manifest.settings, settings
        changes = [
            f"{name} {value} in place of {getattr(before, name)}"
            for name, value in now
            if getattr(before, name) != value
        ]
        was = f"{manifest.train.tokens:,} tokens of {', '.join(manifest.corpus.named)}"
        why = f", with {', '.join(changes)}" if changes else ""
        if not changes and manifest.corpus.named == [*names]:
            why = ", whose texts have changed"
    return (
        f"In {folder} are {was}: they give way to those of {', '.join(names)}{why}, once these are "
        "whole."
    )


def _beside(folder: Path) -> set[Path]:
    """What else than the dataset of one corpus we make in a folder: a mixture, held-out sets."""
    members = {path.parent for path in folder.glob(f"{_MEMBER}*/{MANIFEST}")}
    sets = folder / HELD_OUT_SETS
    ours = sets.is_dir() and all((path / MANIFEST).is_file() for path in sets.iterdir())
    return members | ({folder / "cache"} if members else set()) | ({sets} if ours else set())


_MEMBER = "member"


def _difference(present: Settings, asked: Settings) -> str:
    other = [
        f"{name} {getattr(present, name)} instead of {value}"
        for name, value in asked
        if getattr(present, name) != value
    ]
    return f"with {', '.join(other)}" if other else "from another corpus than is asked for now"
