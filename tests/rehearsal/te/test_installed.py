"""Where TE's Python is found, and what is said where there is none."""

import re
import sys
from pathlib import Path

from dsv3_plugin.rehearsal.te import installed

ROOT = Path(__file__).parents[3]


def _package(folder: Path, version: str) -> Path:
    (folder / "transformer_engine" / "pytorch").mkdir(parents=True)
    (folder / "transformer_engine" / "__init__.py").write_text("")
    metadata = folder / f"transformer_engine-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.4\nName: transformer_engine\nVersion: {version}\n")
    return folder


def test_one_that_is_set_aside_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "path", [])
    assert installed.te_python() is None
    folder = _package(tmp_path / installed.SIDE_FOLDER, "2.20.2")
    assert installed.te_python() == installed.TEPython(folder, "2.20.2")


def test_one_that_is_installed_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    _package(tmp_path / installed.SIDE_FOLDER, "2.20.2")
    whole = _package(tmp_path / "site-packages", "2.20.1")
    monkeypatch.setattr(sys, "path", [str(whole)])
    assert installed.te_python() == installed.TEPython(whole, "2.20.1")


def test_one_version_is_named_everywhere():
    files = ("Makefile", "pyproject.toml", "requirements-te.lock", "requirements-rehearsal.lock")
    named = re.findall(
        r"transformer-engine(?:\[[^]]*\])?==([\d.]+)",
        "".join((ROOT / file).read_text() for file in files) + installed.how_to_get_it(),
    )
    assert len(named) == 4
    assert set(named) == {installed.VERSION}
