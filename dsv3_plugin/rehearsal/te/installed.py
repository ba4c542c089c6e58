"""Where Transformer Engine's Python is, without importing it.

Its wheel `transformer-engine` is pure Python, and holds all that decides what a layer allocates and
keeps; the compiled libraries are packages of their own. A rehearsal needs the Python alone. In an
ordinary process it cannot stand on the path without its libraries (its import ends in an error, and
upstream would take it for a whole one), so `make setup` puts it into a folder of its own.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import DistributionFinder, MetadataPathFinder
from pathlib import Path

from dsv3_plugin.rehearsal.report import Finding

VERSION = "2.20.2"
"""Whose library `library.py` knows."""
SIDE_FOLDER = Path("share") / "dsv3_plugin" / "transformer_engine"
"""Within the environment (`sys.prefix`)."""


@dataclass(frozen=True)
class TEPython:
    """Transformer Engine's Python.

    Attributes:
        folder: what `transformer_engine` lies in.
        version: of the package.
    """

    folder: Path
    version: str


def te_python() -> TEPython | None:
    """The one that is installed (with or without its libraries), else the one set aside."""
    for folder in _places():
        context = DistributionFinder.Context(name="transformer_engine", path=[str(folder)])
        for found in MetadataPathFinder.find_distributions(context):
            if (folder / "transformer_engine" / "pytorch").is_dir():
                return TEPython(folder, found.version)
    return None


def how_to_get_it() -> str:
    """One sentence for those who have none."""
    return (
        "A rehearsed step on a GPU needs Transformer Engine's Python (1.2 MB, nothing is "
        f"compiled): `make setup` sets it aside, or run {_setting_aside('--target')}."
    )


def of_another_version(python: TEPython) -> Finding | None:
    """What is said of a Python that may call its library otherwise than `library.py` knows."""
    if python.version.partition("+")[0] == VERSION:
        return None
    return Finding(
        f"Transformer Engine's Python in {python.folder} is of version {python.version}, and the "
        f"shapes of its library are those of {VERSION}: what changed between them is not rehearsed",
        _away_from_it(python),
        stops=False,
    )


def _away_from_it(python: TEPython) -> str:
    if python.folder == Path(sys.prefix) / SIDE_FOLDER:
        return f"run {_setting_aside('--upgrade --target')}"
    return f"install transformer-engine=={VERSION}, with which the plugin is tested"


def _setting_aside(into: str) -> str:
    folder = Path(sys.prefix) / SIDE_FOLDER
    return f"`pip install --no-deps {into} {folder} transformer-engine=={VERSION}`"


def _places() -> Iterator[Path]:
    installed = PathFinder.find_spec("transformer_engine")
    if installed is not None and installed.origin is not None:
        yield Path(installed.origin).parent.parent
    yield Path(sys.prefix) / SIDE_FOLDER
