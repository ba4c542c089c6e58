"""What is said of a place that holds no weights, or others than were asked for: where those are."""

import contextlib
import re
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import TRACKER, is_checkpoint
from dsv3_plugin.recipe.places import weights_at
from dsv3_plugin.recipe.shipped import what_ships

Wanted = Literal["weights", "a Hugging Face folder", "a checkpoint"]
"""What a command reads; the first: either of the others."""

_CONFIG = "config.json"
_CHECKPOINT = "a checkpoint, or the folder of a run, such as runs/tiny"
_NAMES = {
    "weights": f"a Hugging Face folder, {_CHECKPOINT}",
    "a Hugging Face folder": f"a Hugging Face folder, with its {_CONFIG} and *.safetensors",
    "a checkpoint": _CHECKPOINT,
}
_THEN = {
    "weights": "name that",
    "a Hugging Face folder": "name that",
    "a checkpoint": "and dsv3 import FOLDER CHECKPOINT a checkpoint of that",
}
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*):/+(.*)", re.IGNORECASE)
"""A URL; as a path it has lost one of its slashes."""
_HUB = re.compile(r"(?:hf|(?:www\.)?(?:huggingface\.co|hf\.co))/([\w.-]+/[\w.-]+)(?:/.*)?")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MOST_ABOVE = 3
"""Folders: of a run, a file of an iteration lies in the third."""
_MOST_LOOKED_AT = 1000
"""Folders: more would be waited for."""


def refuse_no_folder(path: Path, wanted: Wanted = "weights") -> None:
    """Raises UserError if there is no folder at `path`, in which weights could be."""
    if path.is_dir():
        return
    if path.exists():
        folder = weights_around(path) or "the one that it lies in"
        raise UserError(f"{path} is a file, and no folder: name {folder}.")
    refuse_elsewhere(path, wanted)
    if str(path) in what_ships()["models"]:
        raise UserError(
            f"'{path}' is a shipped model, which is a description and has no weights: name "
            f"{_NAMES[wanted]}."
        )
    raise UserError(f"{path} does not exist: name {_NAMES[wanted]}.")


def refuse_elsewhere(path: Path, wanted: Wanted = "weights") -> None:
    """Raises UserError if `path` is none, but a place from which models are downloaded."""
    if remote := _elsewhere(path, wanted):
        raise UserError(remote)


def weights_around(file: Path) -> Path | None:
    """The folder of weights, or of a run, that a file belongs to; None: it lies in none."""
    for folder in islice(file.parents, _MOST_ABOVE):
        with contextlib.suppress(UserError):  # of a run's recipe
            if is_checkpoint(weights_at(folder)) or (folder / _CONFIG).is_file():
                return folder
    return None


def refuse_checkpoint(path: Path) -> None:
    """Raises UserError if a checkpoint is at `path`, or a run, where a Hugging Face folder has to.

    Raises it as well if the recipe of a run cannot be read.
    """
    if is_checkpoint(weights_at(path)):
        raise UserError(
            f"{path} is a Megatron checkpoint, not a Hugging Face folder: dsv3 export "
            f"{shlex.quote(str(path))} HF_DIR is the way from there."
        )


def neither(path: Path) -> UserError:
    """What to say of a folder without weights; those may lie further down."""
    if any(path.glob("*.safetensors")):
        return UserError(
            f"{path} has *.safetensors and no {_CONFIG}, which says which model they are of: it "
            "comes with the model, so download it, too."
        )
    snapshots = sorted(config.parent for config in path.glob(f"snapshots/*/{_CONFIG}"))
    below = f": it is an entry of Hugging Face's cache, name {snapshots[-1]}" if snapshots else ""
    if not below and (inside := next(_weights_below(path), None)):
        below = f": name one inside, such as {inside}"
    below = below or f": name {_NAMES['weights']}"
    return UserError(
        f"{path} is neither a Hugging Face folder (it has no {_CONFIG}) nor a Megatron "
        f"checkpoint (it has no {TRACKER}){below}."
    )


def _elsewhere(path: Path, wanted: Wanted) -> str:
    """A sentence for what is no path, but a place from which models are downloaded."""
    if address := _ADDRESS.fullmatch(str(path)):
        what = f"{address[1]}://{address[2]} is an address"
        hub = _HUB.fullmatch(f"{address[1]}/{address[2]}".replace("https/", ""))
        model = hub[1] if hub else ""
    elif _HUB_NAME.fullmatch(str(path)) and not path.parent.exists() and path.parts[0] != "runs":
        what, model = f"{path} does not exist here", str(path)
    else:
        return ""
    if not model:
        return f"{what}, and nothing is downloaded here: copy it into a folder, and name that."
    return (
        f"{what}, and nothing is downloaded: hf download {model} --local-dir FOLDER makes a "
        f"Hugging Face folder of it, {_THEN[wanted]}."
    )


def _weights_below(path: Path) -> Iterator[Path]:
    """The folders in a folder that have weights, or whose checkpoints have."""
    folders = islice((inside for inside in path.iterdir() if inside.is_dir()), _MOST_LOOKED_AT)
    for inside in sorted(folders):
        checkpoints = any(map(is_checkpoint, (inside, inside / "checkpoints")))
        if checkpoints or (inside / _CONFIG).is_file():
            yield inside
