"""Inside the room: the table of names, then the formats, then what converts between them."""

from pathlib import Path

import pytest

import dsv3_plugin
from tests.test_imports import imports, module

ROOM = Path(dsv3_plugin.__file__).parent / "checkpoint"
ORDER = (
    "names", "depth", "formats", "restricted", "patches", "absent", "tracker", "trained_on",
    "conversion", "inspect", "loadable", "load", "live_model", "live_folder",
)  # fmt: skip


@pytest.mark.parametrize("part", ORDER)
def test_imports_point_upwards_in_the_order(part):
    folder = ROOM / part
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOM / f"{part}.py"]
    allowed = {*ORDER[: ORDER.index(part) + 1]}
    wrong = [
        f"{module(path)} imports {name}"
        for path in files
        for name in imports(path, at_import_time=False)
        if name.startswith("dsv3_plugin.checkpoint.") and name.split(".")[2] not in allowed
    ]
    assert not wrong


def test_every_part_has_its_place():
    there = {path.stem for path in ROOM.glob("*.py")} | {
        p.parent.name for p in ROOM.glob("*/__init__.py")
    }
    assert there - {"__init__"} == {*ORDER}
