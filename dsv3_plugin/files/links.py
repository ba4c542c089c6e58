"""Links in a folder that somebody else may have made: they must not reach what lies outside.

A tokenizer file that is a link to another file of the machine would be copied into a checkpoint,
and published with it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from dsv3_plugin.errors import UserError


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, which need not be there.

    The folder may be a link itself: a person named it. In the Hugging Face cache the files of
    `snapshots/REVISION` are links into the `blobs` beside `snapshots`, which belong to the folder.

    Raises:
        UserError: links, or dots in the name, lead out of the folder.
    """
    path, root = folder / name, Path(os.path.realpath(folder))
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(place) for place in (root, *_blobs(root))):
        raise UserError(
            f"{path} leads out of its folder, to {real}, and is not read: put the file itself "
            "there if it belongs there."
        )
    return path


def is_name(value: object) -> bool:
    """Whether what a file says can be the name of another in its folder, and of none elsewhere."""
    plain = isinstance(value, str) and value.isprintable()
    return plain and value not in ("", "..") and Path(value).name == value


def _blobs(root: Path) -> Iterator[Path]:
    """Where the Hugging Face cache keeps the files of `root`; not itself a link's target."""
    for folder in (root, *root.parents):
        if folder.name == "snapshots":
            yield folder.parent / "blobs"
